"""If these fail, a role of docs/security.md has too few permissions or too many, or a missing one is not named.

`make test-secured` runs them against OpenSearch with its security plugin.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import yaml
from conftest import ROOT, isolated
from ports import free_ports
from processes import run
from secured.servers import PASSWORD, Node, neo4j_requiring_a_client_certificate, running
from serving import client
from support import Worker, chunk, empty_neo4j, expanded, read, until

from stream import config
from stream.errors import ConfigurationError
from stream.kafka import clients, topics
from stream.operate.status import caught_up
from stream.records import encode
from stream.serve.service import open_service
from stream.stores import open_stores
from stream.stores.neo4j import Neo4jStore
from stream.stores.opensearch import OpenSearchStore

pytestmark = pytest.mark.servers

Role = dict[str, Any]
ROLES: dict[str, Role] = {
    name: role
    for block in re.findall(
        r"^```yaml\n(.+?)^```", (ROOT / "docs" / "security.md").read_text(), re.DOTALL | re.MULTILINE
    )
    for name, role in yaml.safe_load(block).items()
}
CHUNKS = ("c1", "c2", "c3")
VERSION = "cluster:monitor/main"  # to ask for the server's version


def lists(role: Role) -> list[list[str]]:
    """The permissions of a role, and what they are for."""
    (indexes,) = role["index_permissions"]
    return [role["cluster_permissions"], indexes["allowed_actions"], indexes["index_patterns"]]


def each_permission(name: str) -> pytest.MarkDecorator:
    cluster, index, _ = lists(ROLES[name])
    return pytest.mark.parametrize("permission", [*cluster, *index])


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """With a user for each role, of the same name."""
    with running(tmp_path_factory.mktemp("secured")) as made:
        for name, role in ROLES.items():
            made.security("PUT", f"internalusers/{name}", {"password": PASSWORD})
            made.security("PUT", f"roles/{name}", role)
            made.security("PUT", f"rolesmapping/{name}", {"users": [name]})
        yield made


@pytest.fixture(scope="module")
async def variables(environment: dict[str, str], node: Node) -> dict[str, str]:
    """Of all tests of this module: they share their topics, in which chunks wait for an index worker."""
    found = isolated(environment) | {
        "STREAM_OPENSEARCH_URL": node.url,
        "STREAM_OPENSEARCH_CA_FILE": str(node.certificates["node"][0]),
        "STREAM_OPENSEARCH_ALIAS": "chunks",
    }
    settings = config.only(found)
    await topics.create(settings)
    async with open_stores(settings) as stores, clients.producer(settings) as producer:
        await empty_neo4j(stores)
        for name in CHUNKS:
            made, headers = encode(expanded(name))
            for topic, value in (
                (settings.topic, json.dumps(chunk(name)).encode()),
                (f"{settings.topic}.expanded", made),
            ):
                await producer.send_and_wait(topic, key=name.encode(), value=value, headers=headers)
    return found


def login(name: str) -> dict[str, str]:
    return {"STREAM_OPENSEARCH_USER": name, "STREAM_OPENSEARCH_PASSWORD": PASSWORD}


@contextmanager
def without(node: Node, name: str, what: str) -> Iterator[None]:
    """Takes a permission, or a pattern of indexes, from a role while the context lasts."""
    weaker = deepcopy(ROLES[name])
    for listed in lists(weaker):
        if what in listed:
            listed.remove(what)
    node.security("PUT", f"roles/{name}", weaker)
    try:
        yield
    finally:
        node.security("PUT", f"roles/{name}", ROLES[name])


def names(said: str, permission: str) -> bool:
    """Whether a sentence says that this permission is missing; another one may be missing with it."""
    return bool(re.search(rf"user \w+ has no permission (\S+, )*{re.escape(permission)}(, \S+)* for ", said))


# The index worker


def index_worker() -> Worker:
    (port,) = free_ports(1)
    return Worker("index", port=port, **login("stream_index"))


@pytest.mark.parametrize(
    "what", [what for listed in lists(ROLES["stream_index"]) for what in listed if what != VERSION]
)
async def test_an_index_worker_without_a_permission_names_it_and_rejects_no_chunk(settings, node, what):
    node.administer("DELETE", "/chunks-*")
    with without(node, "stream_index", what):
        async with index_worker() as worker:
            assert await worker.exit_code() == 78
    said = worker.log.read_text().splitlines()[-1]
    patterns = lists(ROLES["stream_index"])[-1]
    assert "has no permission" in said if what in patterns else names(said, what)
    assert await read(settings, topics.dead_letters(settings, "index")) == []


async def test_an_index_worker_works_with_its_role(settings, variables, node):
    """It indexes without the permission to ask for the version, but it is not ready."""
    async with index_worker() as worker:

        async def told() -> bool:
            return names((await worker.get("/readyz"))[1], VERSION)

        with without(node, "stream_index", VERSION):
            await until(told)
        await worker.ready()
        await caught_up(settings, ["index"])
    async with OpenSearchStore(config.only(variables | login("stream_operate"))) as store:
        assert set(await store.stored(CHUNKS)) == set(CHUNKS)


# Searches


async def searched(variables: dict[str, str]) -> str:
    """What is said by a search, by the explanation of a hit, and by the service about what it searches."""
    user = login("stream_search")
    commands = (["search", "sockets", "--strict", "--json"], ["search", "sockets", "--why", "c1", "--json"])
    said = [run(*command, **user) for command in commands]
    async with open_service(config.only(variables | user)) as service, client(service) as http:
        about = await http.get("/about")
    return "".join(ended.out + ended.err for ended in said) + about.text


async def test_searches_work_with_their_role(settings, variables):
    said = await searched(variables)
    assert "no permission" not in said
    assert '"errors":{}' in said
    assert all(f'"chunk_id": "{name}"' in said for name in CHUNKS)


@each_permission("stream_search")
async def test_a_search_without_a_permission_names_it(settings, variables, node, permission):
    with without(node, "stream_search", permission):
        assert names(await searched(variables), permission)


# Operators


def operated() -> Iterator[Any]:
    """The commands of an operator as they end, up to the first that fails."""
    for command in ("status", "verify", "doctor", "reindex start", "reindex status", "reindex prune", "verify"):
        ended = run(*command.split(), **login("stream_operate"), COLUMNS="1000")
        yield ended
        if ended.code:
            return


async def test_operators_work_with_their_role(settings):
    for ended in operated():
        assert ended.code == 0, ended


@each_permission("stream_operate")
async def test_an_operator_without_a_permission_is_told_its_name(settings, node, permission):
    with without(node, "stream_operate", permission):
        *_, last = operated()
    assert names(last.out + last.err, permission), last
    generations = json.loads(run("reindex", "status", "--json", **login("stream_operate")).out)
    half = next((str(one["number"]) for one in generations if one["swapping"]), None)
    finish = ("swap", half) if half else ("abort",)  # the next one begins a generation of its own
    assert run("reindex", *finish, **login("stream_operate")).code == 0


# TLS and authentication


async def test_a_client_certificate_is_a_login(settings, variables, node):
    node.security("PUT", "rolesmapping/stream_search", {"users": ["stream_search", "client"]})
    cert, key = map(str, node.certificates["client"])
    own = {"STREAM_OPENSEARCH_CERT_FILE": cert, "STREAM_OPENSEARCH_KEY_FILE": key}
    async with OpenSearchStore(config.only(variables | own)) as store:
        assert await store.tokens("sockets", await store.live()) == ["socket"]


async def test_a_wrong_password_and_no_password_are_named(settings, variables):
    for user in (login("stream_search") | {"STREAM_OPENSEARCH_PASSWORD": "wrong"}, {}):
        async with OpenSearchStore(config.only(variables | user)) as store:
            with pytest.raises(ConfigurationError, match="STREAM_OPENSEARCH_PASSWORD"):
                await store.live()


async def test_a_node_that_requires_a_client_certificate_names_the_settings(tmp_path):
    with running(tmp_path, "REQUIRE") as node:
        trusted = {"STREAM_OPENSEARCH_URL": node.url, "STREAM_OPENSEARCH_CA_FILE": str(node.certificates["node"][0])}
        for name in (None, "stranger"):
            files = map(str, node.certificates[name]) if name else ()
            own = dict(zip(("STREAM_OPENSEARCH_CERT_FILE", "STREAM_OPENSEARCH_KEY_FILE"), files, strict=False))
            async with OpenSearchStore(config.only(trusted | own)) as store:
                with pytest.raises(ConfigurationError, match="STREAM_OPENSEARCH_CERT_FILE"):
                    await store.live()


async def test_neo4j_lets_in_a_client_certificate_and_the_settings_are_named_without_one(tmp_path):
    with neo4j_requiring_a_client_certificate(tmp_path) as allowed:
        async with Neo4jStore(config.only(allowed)) as store:
            assert "Neo4j 5" in await store.examine()
        refused = {name: value for name, value in allowed.items() if not name.endswith(("CERT_FILE", "KEY_FILE"))}
        async with Neo4jStore(config.only(refused)) as store:
            with pytest.raises(ConfigurationError, match="STREAM_NEO4J_CERT_FILE"):
                await store.examine()
