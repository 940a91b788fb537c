"""If these fail, a client accepts an untrusted server, or does not name the bad file."""

import asyncio
import ssl
from contextlib import asynccontextmanager

import pytest
from guards import certificate, openssl, serving

from stream import config, tls
from stream.errors import ConfigurationError, Outage
from stream.models.embeddings import EmbeddingClient
from stream.stores.neo4j import Neo4jStore
from stream.stores.opensearch import OpenSearchStore

SERVERS = {  # by scheme: the client, its call, the prefix of its settings, and its address's setting
    "bolt+s": (Neo4jStore, Neo4jStore.count, "neo4j", "neo4j_uri"),
    "neo4j+s": (Neo4jStore, Neo4jStore.count, "neo4j", "neo4j_uri"),
    "https": (OpenSearchStore, OpenSearchStore.count, "opensearch", "opensearch_url"),
    "https to vLLM": (EmbeddingClient, EmbeddingClient.answer, "embed", "embed_url"),
}


@asynccontextmanager
async def hanging_up(context):
    """A server that makes a TLS connection and closes it; yields its port and the connections."""
    connections = []

    async def close(_, writer):
        connections.append(writer)
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1], connections


@pytest.mark.parametrize("server", SERVERS)
async def test_a_server_is_trusted_by_the_ca_file_and_a_stranger_is_not(tmp_path, server):
    make, call, name, address = SERVERS[server]
    ours, strangers = (certificate(tmp_path, name) for name in ("ours", "strangers"))
    async with hanging_up(serving(*ours)) as (port, connections):
        for trusted, error in ((strangers, ConfigurationError), (None, ConfigurationError), (ours, Outage)):
            values = {address: f"{server.split()[0]}://127.0.0.1:{port}", f"{name}_ca_file": trusted and trusted[0]}
            async with make(config.only({k: str(v) for k, v in values.items() if v})) as client:
                with pytest.raises(error) as raised:
                    await call(client)
            assert (f"STREAM_{name.upper()}_CA_FILE" in str(raised.value)) == (error is ConfigurationError)
            assert "\n" not in str(raised.value)
            assert bool(connections) == (trusted is ours)


@pytest.mark.parametrize("server", SERVERS)
async def test_a_server_without_tls_is_named_when_tls_is_asked_for(server):
    make, call, _, address = SERVERS[server]

    async def plain(_, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        async with make(config.only({address: f"{server.split()[0]}://127.0.0.1:{port}"})) as client:
            with pytest.raises(ConfigurationError, match="the TLS connection failed") as raised:
                await call(client)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_that_holds_no_certificate_is_named(tmp_path, content):
    file = tmp_path / "ca.pem"
    if content:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match=r"ca\.pem"):
        tls.context(file)


def test_a_key_that_is_another_s_or_has_a_passphrase_is_named_and_nobody_is_asked(tmp_path):
    cert, _ = certificate(tmp_path, "ours")
    _, other = certificate(tmp_path, "other")
    locked = tmp_path / "locked.pem"
    openssl("pkcs8", "-topk8", "-in", str(tmp_path / "ours.key"), "-passout", "pass:hush", "-out", str(locked))
    for key in (other, locked):
        with pytest.raises(ConfigurationError, match=key.name):
            tls.context(None, cert, key)


@pytest.mark.parametrize(
    ("reason", "refused"), [*((reason, False) for reason in sorted(tls.PASSING)), ("BAD_SIGNATURE", True)]
)
def test_what_a_server_says_while_it_starts_or_stops_is_no_refusal(reason, refused):
    """Otherwise an outage ends the worker with exit code 78, which means wrong settings."""
    error = ssl.SSLError(1, reason)
    error.reason = reason
    assert bool(tls.refusal(error)) is refused
