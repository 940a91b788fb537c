"""If this fails, printing an object, for example in an error, shows a password."""

from contextlib import AsyncExitStack

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from stream import config
from stream.kafka import clients
from stream.models.embeddings import EmbeddingClient
from stream.stores import open_stores
from stream.worker.source import _app

PLANTED = {
    name: f"planted-{name}" for name in ("kafka_password", "neo4j_password", "opensearch_password", "embed_api_key")
}
LOGIN = {"kafka_security_protocol": "SASL_SSL", "kafka_sasl_mechanism": "PLAIN", "kafka_user": "alice"}


@pytest.fixture
async def told():
    """All objects that hold a secret: our own, the libraries' clients, and their parts."""
    settings = config.only(PLANTED | LOGIN | {"opensearch_user": "alice"})
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(open_stores(settings))
        embedder = await stack.enter_async_context(EmbeddingClient(settings))
        brokers = [
            make(**clients._reach(settings)) for make in (AIOKafkaConsumer, AIOKafkaProducer, AIOKafkaAdminClient)
        ]
        for client in brokers:
            stack.push_async_callback(getattr(client, "stop", None) or client.close)
        app = _app("embed", settings, None)
        opensearch = stores.opensearch._client.transport
        yield [
            settings,
            *(stores, stores.neo4j, stores.neo4j._driver, stores.opensearch, stores.opensearch._client),
            *(opensearch, opensearch.connection_pool, *opensearch.connection_pool.connections),
            *(embedder, embedder._http, embedder._http.headers),
            *brokers,
            *(getattr(client, "_client", None) or client.client for client in brokers),
            *(app, app.conf, app.conf.broker_credentials),
        ]


async def test_no_object_shows_the_secret_that_it_was_told(told):
    shown = "\n".join(f"{thing!r} {thing} {thing:}" for thing in told)
    assert "alice" in shown  # a user name is no secret: the objects do show their contents
    assert [name for name, secret in PLANTED.items() if secret in shown] == []
