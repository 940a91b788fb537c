"""Servers with TLS and authentication: if these fail, the flow cannot connect to them, or it reveals a secret."""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import uuid
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from traceback import format_exception
from typing import Any

import pytest
from conftest import ROOT
from guards import TokenEndpoint, certificate, login_before, serving, tls_before
from ports import free_ports
from pydantic import SecretStr
from support import LONGEST, Worker, changed_properties, chunk, read, send, until
from typer.testing import CliRunner

from stream.cli import app
from stream.config import STAGES, Settings, only
from stream.errors import ConfigurationError, Outage
from stream.kafka import clients, topics
from stream.local import java
from stream.local import kafka as local_kafka
from stream.local.profile import HOST, Profile
from stream.operate.status import caught_up

pytestmark = pytest.mark.servers

SEARCH = ("search", "sockets", "--mode", "dense")
SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")
MECHANISMS = ("PLAIN", *SCRAM, "OAUTHBEARER")
SECRETS = {name: f"planted{uuid.uuid4().hex}" for name in ("kafka", "client", "opensearch", "embed", "hub", "wrong")}
TOKEN_SECONDS = 2  # the lifetime of tokens that expire during a test
OPENSEARCH = ("öffner", f"{SECRETS['opensearch']} 字")  # not encodable in Latin-1
BASIC, WRONG_BASIC = (
    base64.b64encode(f"{OPENSEARCH[0]}:{password}".encode()).decode() for password in (OPENSEARCH[1], SECRETS["wrong"])
)


@dataclass(frozen=True)
class Broker:
    """A secured Kafka, with its addresses and certificates."""

    addresses: dict[str, str]  # host:port by security protocol
    certificates: dict[str, tuple[Any, Any]]
    tokens: TokenEndpoint

    def login(self, protocol="SASL_SSL", mechanism="SCRAM-SHA-512") -> dict[str, str]:
        variables = {"SERVERS": self.addresses[protocol], "SECURITY_PROTOCOL": protocol}
        if protocol.startswith("SASL") and mechanism == "OAUTHBEARER":
            client = {"URL": self.tokens.url, "CLIENT_ID": "client", "CLIENT_SECRET": SECRETS["client"]}
            variables |= {"SASL_MECHANISM": mechanism, **{f"OAUTH_{name}": value for name, value in client.items()}}
        elif protocol.startswith("SASL"):
            variables |= {"SASL_MECHANISM": mechanism, "USER": "alice", "PASSWORD": SECRETS["kafka"]}
        if protocol.endswith("SSL"):
            variables["CA_FILE"] = str(self.certificates["broker"][0])
        if protocol == "SSL":
            variables |= dict(zip(("CERT_FILE", "KEY_FILE"), map(str, self.certificates["client"]), strict=True))
        return {f"STREAM_KAFKA_{name}": value for name, value in variables.items()}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """(certificate, key) by name: of the servers, of a client, and of a client that no server trusts."""
    folder = tmp_path_factory.mktemp("certificates")
    return {name: certificate(folder, name) for name in ("broker", "client", "stranger", "store")}


@pytest.fixture(scope="module")
async def broker(tmp_path_factory, certificates):
    """A second Kafka, which requires SASL authentication or, with SSL, a client certificate."""
    *ports, controller = free_ports(4)
    addresses = dict(zip(("SASL_SSL", "SSL", "SASL_PLAINTEXT"), (f"{HOST}:{port}" for port in ports), strict=True))
    home = tmp_path_factory.mktemp("kafka")
    profile = Profile(home, ROOT / ".local" / "artifacts", kafka_controller_port=controller)
    folder = java.assemble(profile, local_kafka.NAME, print)
    configuration = secured(profile, addresses, certificates)
    users = [f"{mechanism}=[name=alice,password={SECRETS['kafka']}]" for mechanism in SCRAM]
    tool = ["kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c", str(configuration)]
    tool += [word for user in users for word in ("--add-scram", user)]
    java.run(java.find(), ["-cp", f"{folder}/lib/*", *tool], home)
    with (home / "kafka.log").open("wb") as log:
        process = subprocess.Popen(local_kafka.program(profile).command, cwd=home, stdout=log, stderr=log)
    tokens = TokenEndpoint("client", SECRETS["client"])
    made = Broker(addresses, certificates, tokens)

    async def answers():
        assert process.poll() is None, (home / "kafka.log").read_text()[-3000:]
        with suppress(Outage):
            async with clients.admin(only(made.login())):
                return True
        return False

    try:
        await until(answers)
        async with tokens.serving():
            yield made
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


def secured(profile, addresses, certificates):
    """Writes the local profile's configuration with these listeners. Returns the file."""
    (cert, key), (client, _) = certificates["broker"], certificates["client"]
    (profile.home / "broker.pem").write_text(key.read_text() + cert.read_text())
    (profile.home / "clients.pem").write_text(cert.read_text() + client.read_text())  # brokers are clients too
    listeners = ",".join(f"{protocol}://{address}" for protocol, address in addresses.items())
    package = "org.apache.kafka.common.security"
    changed = {
        "listeners": f"{listeners},CONTROLLER://{HOST}:{profile.kafka_controller_port}",
        "advertised.listeners": listeners,
        "inter.broker.listener.name": "SSL",
        "listener.security.protocol.map": ",".join(f"{name}:{name}" for name in addresses) + ",CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": ",".join(MECHANISMS),
        "listener.name.ssl.ssl.client.auth": "required",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": profile.home / "broker.pem",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": profile.home / "clients.pem",
    }
    for listener in ("sasl_ssl", "sasl_plaintext"):
        for mechanism in MECHANISMS:
            module = {
                "PLAIN": f'plain.PlainLoginModule required user_alice="{SECRETS["kafka"]}"',
                "OAUTHBEARER": 'oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker"',
            }.get(mechanism, "scram.ScramLoginModule required")
            changed[f"listener.name.{listener}.{mechanism.lower()}.sasl.jaas.config"] = f"{package}.{module};"
        changed[f"listener.name.{listener}.oauthbearer.sasl.server.callback.handler.class"] = (
            f"{package}.oauthbearer.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler"
        )
    changed["listener.name.sasl_plaintext.oauthbearer.connections.max.reauth.ms"] = "60000"  # or a token's lifetime
    path = local_kafka._conf(profile)
    path.parent.mkdir(parents=True)
    path.write_text(changed_properties(local_kafka._properties("data", profile), changed))
    return path


def holds_a_secret(said: str, certificates, *more: str) -> list[str]:
    """The secrets in a text: as plain text, as the Base64 of a login, or as a line of a private key."""
    plain = [*SECRETS.values(), *more, *(key.read_text().splitlines()[1] for _, key in certificates.values())]
    return [secret for secret in [*plain, BASIC, WRONG_BASIC] if secret in said]


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


async def stream(*arguments: str, **variables: str) -> Ended:
    """Runs the command as a process, without blocking the servers of this process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stream", *arguments),
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    return Ended(process.returncode or 0, out.decode(), err.decode())


# Authentication succeeds


@pytest.mark.parametrize(
    ("protocol", "mechanism"),
    [("SSL", ""), *((protocol, each) for protocol in ("SASL_SSL", "SASL_PLAINTEXT") for each in MECHANISMS)],
)
async def test_every_protocol_and_mechanism_sends_and_receives_records(
    settings, broker, monkeypatch, protocol, mechanism
):
    for name, value in broker.login(protocol, mechanism).items():
        monkeypatch.setenv(name, value)
    secure = Settings(_env_file=None)
    await topics.create(secure)
    await send(secure, [(b"k", b"v")])
    assert [(record.key, record.value) for record in await read(secure, secure.topic)] == [(b"k", b"v")]


# Authentication fails


def without(variables, *names):
    return {name: value for name, value in variables.items() if not name.endswith(names)}


WRONG = {
    "no TLS": (lambda b: {"STREAM_KAFKA_SERVERS": b.addresses["SASL_SSL"]}, "SECURITY_PROTOCOL"),
    "no login": (
        lambda b: (
            without(b.login(), "_PROTOCOL", "_MECHANISM", "_USER", "_PASSWORD")
            | {"STREAM_KAFKA_SECURITY_PROTOCOL": "SSL"}
        ),
        "SECURITY_PROTOCOL",
    ),
    "a wrong password": (lambda b: b.login() | {"STREAM_KAFKA_PASSWORD": SECRETS["wrong"]}, "PASSWORD"),
    "an untrusted CA": (
        lambda b: b.login() | {"STREAM_KAFKA_CA_FILE": str(b.certificates["stranger"][0])},
        "CA_FILE",
    ),
    "no CA file": (lambda b: without(b.login(), "CA_FILE"), "CA_FILE"),
    "no login without TLS": (
        lambda b: {"STREAM_KAFKA_SERVERS": b.addresses["SASL_PLAINTEXT"]},
        "SECURITY_PROTOCOL",
    ),
    "TLS where there is none": (
        lambda b: b.login() | {"STREAM_KAFKA_SERVERS": b.addresses["SASL_PLAINTEXT"]},
        "SECURITY_PROTOCOL",
    ),
    "an unknown user": (lambda b: b.login() | {"STREAM_KAFKA_USER": "mallory"}, "USER"),
    "a wrong password, plain": (
        lambda b: b.login("SASL_PLAINTEXT", "PLAIN") | {"STREAM_KAFKA_PASSWORD": SECRETS["wrong"]},
        "PASSWORD",
    ),
    "a wrong client secret": (
        lambda b: b.login(mechanism="OAUTHBEARER") | {"STREAM_KAFKA_OAUTH_CLIENT_SECRET": SECRETS["wrong"]},
        "CLIENT_SECRET",
    ),
    "an untrusted client certificate": (
        lambda b: (
            b.login("SSL")
            | dict(
                zip(
                    ("STREAM_KAFKA_CERT_FILE", "STREAM_KAFKA_KEY_FILE"),
                    map(str, b.certificates["stranger"]),
                    strict=True,
                )
            )
        ),
        "CERT_FILE",
    ),
    "no client certificate": (lambda b: without(b.login("SSL"), "CERT_FILE", "KEY_FILE"), "CERT_FILE"),
    "a missing file": (lambda b: b.login() | {"STREAM_KAFKA_CA_FILE": "nowhere.pem"}, "nowhere.pem"),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_failed_connection_names_the_setting_to_correct(broker, certificates, wrong):
    variables, words = WRONG[wrong]
    with pytest.raises(ConfigurationError) as raised:
        async with clients.admin(only(variables(broker))):
            pass
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not holds_a_secret(str(raised.getrepr()), certificates)


@pytest.mark.parametrize("wrong", list(WRONG)[:4])
async def test_a_failed_connection_is_one_sentence_and_exit_code_78(settings, broker, certificates, wrong):
    """A command and a worker, both with log level debug."""
    variables, words = WRONG[wrong]
    told = variables(broker) | {"STREAM_LOG_LEVEL": "debug"}
    command, worker = await asyncio.gather(
        stream("status", "--json", **told), stream("worker", "embed", **told, STREAM_WEB_PORT="0")
    )
    (sentence,) = command.err.splitlines()
    assert sentence.startswith("stream: ")
    assert words in sentence
    assert [line for line in worker.err.splitlines() if line.startswith("stream: ")] == [sentence]
    assert (command.code, worker.code, command.out) == (78, 78, "")
    assert "Traceback" not in worker.err
    assert not holds_a_secret(command.err + worker.err, certificates)


async def test_a_token_that_the_broker_rejects_is_a_wrong_setting(broker, certificates, tmp_path):
    """aiokafka takes the broker's error for a success, so it would look like an outage."""
    login, file = broker.login(mechanism="OAUTHBEARER"), tmp_path / "token"
    file.write_text(broker.tokens.token(lifetime=-60))
    variables = {name: value for name, value in login.items() if "_OAUTH_" not in name}
    with pytest.raises(ConfigurationError, match=r"authentication failed.*OAUTH"):
        async with clients.admin(only(variables | {"STREAM_KAFKA_OAUTH_TOKEN_FILE": str(file)})):
            pass
    file.write_text(broker.tokens.token())
    async with clients.admin(only(variables | {"STREAM_KAFKA_OAUTH_TOKEN_FILE": str(file)})):
        pass


async def test_a_token_endpoint_that_is_down_is_an_outage(broker, certificates):
    login = broker.login(mechanism="OAUTHBEARER") | {"STREAM_KAFKA_OAUTH_URL": f"http://{HOST}:{free_ports(1)[0]}/t"}
    with pytest.raises(Outage, match=r"does not answer.*STREAM_KAFKA_OAUTH_URL") as raised:
        async with clients.admin(only(login)):
            pass
    assert not holds_a_secret(str(raised.getrepr()), certificates)


async def test_a_worker_goes_on_when_its_tokens_expire(settings, broker, certificates, monkeypatch):
    """The broker closes a connection whose token has expired."""
    for name, value in (broker.login("SASL_PLAINTEXT", "OAUTHBEARER") | {"STREAM_LOG_LEVEL": "debug"}).items():
        monkeypatch.setenv(name, value)
    secure, sent = Settings(_env_file=None), 0
    await topics.create(secure)
    async with (
        TokenEndpoint("client", SECRETS["client"], TOKEN_SECONDS).serving() as short,
        Worker("embed", port=free_ports(1)[0], STREAM_KAFKA_OAUTH_URL=short.url) as worker,
    ):
        await worker.ready()
        before = len(short.tokens)

        async def connections_are_new() -> bool:
            nonlocal sent
            await send(secure, [(f"c{sent}".encode(), json.dumps(chunk(f"c{sent}")).encode())])
            sent += 1
            return len(short.tokens) > before + 5

        await until(connections_are_new, every=TOKEN_SECONDS / 4)
        await caught_up(secure, ["embed"])
        assert await worker.end(signal.SIGTERM) == 0
        said = worker.log.read_text()
    passed = {record.key for record in await read(secure, topics.source(secure, "expand"))}
    assert passed == {f"c{n}".encode() for n in range(sent)}
    assert not holds_a_secret(said, certificates, *short.tokens)


# No output holds a secret


class Said:
    """All output of commands and workers, by source."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def add(self, who: str, text: str) -> None:
        assert text, who
        self.texts.append((who, text))

    async def by(self, code: int, *arguments: str, **variables: str) -> str:
        """Runs a command in this process. Records its output and the traceback of its exception."""
        ended = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=variables)
        traceback = "".join(format_exception(ended.exception)) if ended.exception else ""
        assert getattr(ended.exception, "exit_code", ended.exit_code) == code, ended.output + traceback
        self.add(f"{arguments} {[*variables]}", ended.output + traceback)
        return ended.output

    async def by_worker(self, stage: str, **variables: str) -> None:
        """Runs a worker that must exit with 78. Records its output."""
        ended = await stream("worker", stage, **variables, STREAM_INSTANCE="other", STREAM_WEB_PORT="0")
        assert ended.code == 78, ended
        self.add(f"{stage} {[*variables]}", ended.err)


@pytest.fixture
async def guards(environment, certificates, monkeypatch):
    """TLS and authentication in front of Neo4j, OpenSearch and the embedder, until the stack is closed."""
    (cert, key), neo4j = certificates["store"], environment["STREAM_NEO4J_URI"].removeprefix("bolt://")
    context, bearer = serving(cert, key), f"Bearer {SECRETS['embed']}"
    async with AsyncExitStack() as stack:
        bolt = await stack.enter_async_context(tls_before(neo4j, context))
        https, vllm = [
            await stack.enter_async_context(login_before(environment[f"STREAM_{name}_URL"], authorization, context))
            for name, authorization in (("OPENSEARCH", f"Basic {BASIC}"), ("EMBED", bearer))
        ]
        planted = {
            "STREAM_NEO4J_URI": f"neo4j+s://{bolt}",
            "STREAM_OPENSEARCH_URL": f"https://{https}",
            "STREAM_OPENSEARCH_USER": OPENSEARCH[0],
            "STREAM_OPENSEARCH_PASSWORD": OPENSEARCH[1],
            "STREAM_EMBED_URL": f"https://{vllm}",
            "STREAM_EMBED_API_KEY": SECRETS["embed"],
            "HF_TOKEN": SECRETS["hub"],
        }
        for name, value in planted.items():
            monkeypatch.setenv(name, value)
        for name in ("NEO4J", "OPENSEARCH", "EMBED"):
            monkeypatch.setenv(f"STREAM_{name}_CA_FILE", str(cert))
        yield stack


async def test_chunks_pass_all_secured_servers_and_no_output_holds_a_secret(
    settings, stores, broker, certificates, guards, monkeypatch
):
    """Each worker uses another protocol for Kafka. Logs, metrics and reports must hold no password."""
    monkeypatch.setenv("STREAM_OUTAGE_BOUND", "1")
    monkeypatch.setenv("STREAM_LOG_LEVEL", "debug")
    said = Said()
    async with AsyncExitStack() as stack:
        workers = {}
        ways = (
            broker.login("SSL"),
            broker.login("SASL_PLAINTEXT", "PLAIN"),
            broker.login(mechanism="OAUTHBEARER"),
        )
        for stage, port, way in zip(STAGES, free_ports(3), ways, strict=True):
            for name, value in way.items():
                monkeypatch.setenv(name, value)
            if stage == STAGES[0]:
                await said.by(0, "topics", "create")
            workers[stage] = await stack.enter_async_context(Worker(stage, port=port))
            for name in way:
                monkeypatch.delenv(name)
        for name, value in broker.login().items():
            monkeypatch.setenv(name, value)
        secure = Settings(_env_file=None)
        own = every_secret(secure)["neo4j_password"]
        await it_works(secure, workers, said)
        await it_is_refused(said, str(certificates["stranger"][0]))
        await guards.aclose()
        await it_is_down(secure, workers, said)
    for stage, worker in workers.items():
        said.add(stage, worker.log.read_text())
    planted = (own, *broker.tokens.tokens)
    leaks = sorted(who for who, text in said.texts if holds_a_secret(text, certificates, *planted))
    assert not leaks, "; ".join(leaks)


def every_secret(settings):
    secret = {name: value.get_secret_value() for name, value in settings if isinstance(value, SecretStr)}
    fields = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert fields == {*secret, "kafka_oauth_client_secret"}  # which only a worker has
    return secret


async def it_works(secure, workers, said):
    names = {f"c{n}" for n in range(20)}
    await send(secure, [(name.encode(), json.dumps(chunk(name, f"sockets {name}")).encode()) for name in names])
    await send(secure, [(b"bad", b"{")])
    async with asyncio.timeout(LONGEST):
        await caught_up(secure)
    for stage, worker in workers.items():
        for path in ("/metrics", "/readyz", "/healthz"):
            said.add(f"{stage}{path}", (await worker.get(path))[1])
    report = json.loads(await said.by(0, "verify", "--json"))
    assert (report["clean"], report["indexed"], report["dead_lettered"]) == (True, len(names), 1)
    assert [letter["key"] for letter in json.loads(await said.by(0, "dlq", "ls", "--json"))] == ["bad"]
    await said.by(0, "dlq", "show", "embed", "bad", "--json")
    await said.by(0, "dlq", "redrive", "--dry-run", "--json")
    await said.by(0, "dlq", "purge", "--stage", "embed", "--dry-run", "--json")
    await said.by(0, "status", "--json")
    await said.by(0, *SEARCH, "--json")
    await said.by(0, "settings")
    said.add("letters", repr(await read(secure, topics.dead_letters(secure, "embed"))))


async def it_is_refused(said, stranger):
    wrong = SECRETS["wrong"]
    await said.by(78, "status", STREAM_NEO4J_PASSWORD=wrong)
    await said.by(78, "status", STREAM_NEO4J_PASSWORD="")
    await said.by(78, "status", STREAM_NEO4J_CA_FILE=stranger)
    await said.by(78, "status", STREAM_OPENSEARCH_PASSWORD=wrong)
    await said.by(78, "status", STREAM_OPENSEARCH_CA_FILE=stranger)
    await said.by(78, "status", STREAM_OPENSEARCH_URL=f"https://u:{wrong}/@{HOST}")
    await said.by(78, "--set", f"kafka_password={wrong}", "--set", "partitions=x", "status")
    await said.by(78, *SEARCH, STREAM_EMBED_API_KEY=wrong)
    await said.by(78, *SEARCH, STREAM_EMBED_API_KEY=f"{wrong}\n")
    await said.by(78, *SEARCH, STREAM_EMBED_CA_FILE=stranger)
    async with login_before("", "nobody") as hub:  # it refuses every login
        await asyncio.gather(
            said.by_worker("embed", STREAM_EMBED_API_KEY=wrong),
            said.by_worker("expand", HF_ENDPOINT=f"http://{hub}", STREAM_SPLADE_MODEL="nobody/nothing"),
            said.by_worker("index", STREAM_OPENSEARCH_PASSWORD=wrong),
        )


async def it_is_down(secure, workers, said):
    """Two workers end with an outage at the next chunk. The third has no work and ends with 0 at SIGTERM."""
    again = (await read(secure, topics.source(secure, "index")))[0]
    async with clients.producer(secure) as producer:
        await producer.send_and_wait(again.topic, key=again.key, value=again.value, headers=list(again.headers))
    await send(secure, [(b"late", json.dumps(chunk("late")).encode())])
    assert await workers["embed"].exit_code() == 75
    assert await workers["index"].exit_code() == 75
    assert await workers["expand"].end(signal.SIGTERM) == 0
    await said.by(75, "status")
    await said.by(75, *SEARCH)
