"""A Kafka that wants TLS and a login: if these fail, a worker cannot reach it, or shows what it must not."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from conftest import ROOT, free_ports
from support import Worker, certificate, chunk, read, send, until

from stream import kafka, topics
from stream.config import Settings, only
from stream.errors import Outage
from stream.local import java
from stream.local import kafka as local_kafka
from stream.local.profile import HOST, Profile
from stream.status import caught_up

pytestmark = [pytest.mark.servers, pytest.mark.timeout(400)]

PASSWORD = "planted-secret-kafka"
PLANTED = {  # what is not asked for does not mind
    "STREAM_OPENSEARCH_USER": "somebody",
    "STREAM_OPENSEARCH_PASSWORD": "planted-secret-opensearch",
    "STREAM_EMBED_API_KEY": "planted-secret-embed",
}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Those of the broker, of a client, and of one whom nobody knows: (certificate, key) by name."""
    folder = tmp_path_factory.mktemp("certificates")
    return {name: certificate(folder, name) for name in ("broker", "client", "stranger")}


@pytest.fixture(scope="module")
async def broker(environment, tmp_path_factory, certificates):
    """A second Kafka; yields its ports: (SASL_SSL with SCRAM, SSL for clients that have a certificate)."""
    ports = free_ports(3)
    profile = Profile(
        home=tmp_path_factory.mktemp("kafka"),
        artifacts=ROOT / ".local" / "artifacts",
        kafka_port=ports[0],
        kafka_controller_port=ports[2],
    )
    conf = secured(profile, ports[1], certificates)
    folder = java.assemble(profile, local_kafka.NAME, print)
    user = f"SCRAM-SHA-512=[name=alice,password={PASSWORD}]"
    tool = ["kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c", str(conf), "--add-scram", user]
    java.run(java.find(), ["-cp", f"{folder}/lib/*", *tool], profile.home)
    program = local_kafka.program(profile)
    with (profile.home / "kafka.log").open("wb") as log:
        process = subprocess.Popen(program.command, cwd=profile.home, stdout=log, stderr=log)

    async def answers():
        assert process.poll() is None, (profile.home / "kafka.log").read_text()[-3000:]
        with suppress(Outage):
            async with kafka.admin(only(login(ports, certificates))):
                return True
        return False

    try:
        await until(answers)
        yield ports[:2]
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


def secured(profile, ssl_port, certificates):
    """Writes the local profile's own configuration with these listeners instead; returns the file."""
    written = local_kafka._properties("data", profile)
    store, trust = profile.home / "broker.pem", profile.home / "clients.pem"
    (cert, key), (client, _) = certificates["broker"], certificates["client"]
    store.write_text(key.read_text() + cert.read_text())
    trust.write_text(cert.read_text() + client.read_text())  # its own too: brokers come by SSL as well
    changed = {
        "listeners": f"SASL_SSL://{HOST}:{profile.kafka_port},SSL://{HOST}:{ssl_port}"
        f",CONTROLLER://{HOST}:{profile.kafka_controller_port}",
        "advertised.listeners": f"SASL_SSL://{HOST}:{profile.kafka_port},SSL://{HOST}:{ssl_port}",
        "inter.broker.listener.name": "SSL",
        "listener.security.protocol.map": "SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "listener.name.ssl.ssl.client.auth": "required",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": store,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": trust,
    }
    kept = [line for line in written.splitlines() if line.partition("=")[0] not in changed]
    conf = profile.home / "conf" / "kafka" / "server.properties"
    conf.parent.mkdir(parents=True)
    conf.write_text("\n".join([*kept, *(f"{name}={value}" for name, value in changed.items())]) + "\n")
    return conf


def login(ports, certificates):
    return {
        "STREAM_KAFKA_SERVERS": f"{HOST}:{ports[0]}",
        "STREAM_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "STREAM_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
        "STREAM_KAFKA_USER": "alice",
        "STREAM_KAFKA_PASSWORD": PASSWORD,
        "STREAM_KAFKA_CA_FILE": str(certificates["broker"][0]),
    }


def by_certificate(ports, certificates, name="client"):
    cert, key = certificates[name]
    return {
        "STREAM_KAFKA_SERVERS": f"{HOST}:{ports[1]}",
        "STREAM_KAFKA_SECURITY_PROTOCOL": "SSL",
        "STREAM_KAFKA_CA_FILE": str(certificates["broker"][0]),
        "STREAM_KAFKA_CERT_FILE": str(cert),
        "STREAM_KAFKA_KEY_FILE": str(key),
    }


@pytest.fixture(params=["login", "by_certificate"])
async def secure(request, broker, certificates, settings, monkeypatch) -> Settings:
    """Settings of one test with the second Kafka, as its environment says; topics exist."""
    for name, value in globals()[request.param](broker, certificates).items():
        monkeypatch.setenv(name, value)
    made = Settings(_env_file=None)
    await topics.create(made)
    return made


async def test_the_worker_takes_and_publishes_through_a_secured_kafka(secure):
    keys = {f"c{n}" for n in range(100)}
    await send(secure, [(key.encode(), json.dumps(chunk(key, f"text {key}")).encode()) for key in keys])
    async with Worker("embed", port=free_ports(1)[0]) as worker:
        async with asyncio.timeout(90):
            await caught_up(secure, ["embed"])
        assert await worker.end(signal.SIGTERM) == 0
    outputs = await read(secure, topics.source(secure, "expand"))
    assert {record.key.decode() for record in outputs} == keys
    assert all(json.loads(record.value)["embedding_qwen"] for record in outputs)


def run(*arguments, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAM_KAFKA_")}
    return subprocess.run(
        [sys.executable, "-m", "stream", *arguments],
        env=environment | PLANTED | variables,
        stdin=subprocess.DEVNULL,
        check=False,
        capture_output=True,
        text=True,
    )


WRONG = {
    "a wrong password": (login, {"STREAM_KAFKA_PASSWORD": "planted-secret-wrong"}, 78, "STREAM_KAFKA_PASSWORD"),
    "an unknown user": (login, {"STREAM_KAFKA_USER": "mallory"}, 78, "STREAM_KAFKA_USER"),
    "another mechanism": (login, {"STREAM_KAFKA_SASL_MECHANISM": "PLAIN"}, 78, "STREAM_KAFKA_SASL_MECHANISM"),
    "a broker that is a stranger": (login, {"STREAM_KAFKA_CA_FILE": "stranger"}, 78, "STREAM_KAFKA_CA_FILE"),
    "a client that is a stranger": (
        lambda ports, certificates: by_certificate(ports, certificates, "stranger"),
        {},
        78,
        "STREAM_KAFKA_CERT_FILE",
    ),
    "a missing file": (login, {"STREAM_KAFKA_CA_FILE": "nowhere.pem"}, 78, "nowhere.pem"),
    "no login": (by_certificate, {"STREAM_KAFKA_SERVERS": "login"}, 75, "STREAM_KAFKA_SECURITY_PROTOCOL"),
    "no TLS": (lambda *_: {}, {"STREAM_KAFKA_SERVERS": "login"}, 75, "STREAM_KAFKA_SECURITY_PROTOCOL"),
}


@pytest.mark.parametrize("command", [["dlq", "ls", "--json"], ["worker", "embed"]], ids=["cli", "worker"])
@pytest.mark.parametrize("wrong", WRONG)
def test_who_is_not_let_in_gets_one_sentence_and_no_secret(settings, broker, certificates, wrong, command):
    base, change, code, words = WRONG[wrong]
    stands_for = {"stranger": str(certificates["stranger"][0]), "login": f"{HOST}:{broker[0]}"}
    change = {name: stands_for.get(value, value) for name, value in change.items()}
    ended = run(*command, **base(broker, certificates) | change, STREAM_LOG_LEVEL="debug")
    (sentence,) = [line for line in ended.stderr.splitlines() if line.startswith("stream: ")]
    assert (ended.returncode, words in sentence) == (code, True), ended.stderr
    assert "Traceback" not in ended.stderr
    assert "planted-secret" not in ended.stdout + ended.stderr
    if command[0] != "worker":
        assert ended.stderr.splitlines() == [sentence]


async def test_no_secret_is_in_anything_that_a_run_says(broker, certificates, settings, monkeypatch, tmp_path):
    """Whoever reads logs, metrics or reports would have every password."""
    for name, value in (login(broker, certificates) | PLANTED).items():
        monkeypatch.setenv(name, value)
    loud = Settings(_env_file=None)
    secrets = [value.get_secret_value() for _, value in loud if hasattr(value, "get_secret_value")]
    assert len(secrets) == sum("SecretStr" in str(field.annotation) for field in Settings.model_fields.values())
    await topics.create(loud)
    await send(loud, [(b"good", json.dumps(chunk("good")).encode()), (b"bad", b"{")])
    said = [repr(loud), str(loud)]
    port = free_ports(1)[0]
    async with Worker("embed", port=port, STREAM_LOG_LEVEL="debug") as worker:
        await caught_up(loud, ["embed"])
        said += [await worker._get(path) for path in ("/metrics", "/readyz", "/healthz")]
        assert all(said)
        assert await worker.end(signal.SIGTERM) == 0
    async with Worker("index", port=port, STREAM_LOG_LEVEL="debug") as index:
        await index.ready()
        assert await index.end(signal.SIGTERM) == 0
    said += [worker.log.read_text(), index.log.read_text()]
    planted = dict(PLANTED) | {name: value for name, value in os.environ.items() if name.startswith("STREAM_KAFKA_")}
    closed = f"{HOST}:1"
    for arguments, down in [
        (["status", "--json"], {}),
        (["verify", "--json"], {}),
        (["search", "text", "--mode", "dense", "--json"], {}),
        (["search", "text", "--mode", "lexical", "--json"], {}),
        (["dlq", "ls", "--json"], {}),
        (["settings"], {}),
        (["status"], {"STREAM_KAFKA_SERVERS": closed}),
        (["status"], {"STREAM_NEO4J_URI": f"bolt://{closed}"}),
        (["status"], {"STREAM_OPENSEARCH_URL": f"http://{closed}"}),
        (["search", "text", "--mode", "dense"], {"STREAM_EMBED_URL": f"http://{closed}"}),
        (["status"], {"STREAM_NEO4J_PASSWORD": "planted-secret-neo4j"}),
        (["--set", "kafka_password=planted-secret-set", "--set", "partitions=x", "status"], {}),
    ]:
        ended = await asyncio.to_thread(run, *arguments, **planted | down)
        assert ended.stdout + ended.stderr
        said += [ended.stdout, ended.stderr]
    everything = "\n".join(said)
    assert not [secret for secret in [*secrets, "planted-secret"] if re.search(re.escape(secret), everything)]
