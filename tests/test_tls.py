"""If these fail, a client accepts an untrusted server, or does not name the bad file."""

import asyncio
import shutil
import socket
import socketserver
import ssl
from contextlib import contextmanager, suppress
from threading import Thread

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


@contextmanager
def hanging_up(context):
    """A server that makes TLS connections and closes them; yields its port and the clients' certificates.

    It is no server of asyncio: those refuse a client without an alert, which says why.
    """
    clients = []

    class Closing(socketserver.BaseRequestHandler):
        def handle(self):
            with (
                suppress(OSError),
                context.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False) as connection,
            ):
                try:
                    connection.do_handshake()
                    clients.append(connection.getpeercert())
                except ssl.SSLError:
                    while socket.socket.recv(connection, 2**16):  # as real servers do: a reset would overtake the alert
                        pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Closing) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1], clients
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("server", SERVERS)
async def test_a_server_is_trusted_by_the_ca_file_and_a_stranger_is_not(tmp_path, server):
    make, call, name, address = SERVERS[server]
    ours, strangers = (certificate(tmp_path, name) for name in ("ours", "strangers"))
    with hanging_up(serving(*ours)) as (port, clients):
        for trusted, error in ((strangers, ConfigurationError), (None, ConfigurationError), (ours, Outage)):
            values = {address: f"{server.split()[0]}://127.0.0.1:{port}", f"{name}_ca_file": trusted and trusted[0]}
            async with make(config.only({k: str(v) for k, v in values.items() if v})) as client:
                with pytest.raises(error) as raised:
                    await call(client)
            assert (f"STREAM_{name.upper()}_CA_FILE" in str(raised.value)) == (error is ConfigurationError)
            assert "\n" not in str(raised.value)
            assert bool(clients) == (trusted is ours)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("server", SERVERS)
async def test_a_server_that_requires_a_client_certificate_gets_it_or_the_settings_are_named(tmp_path, server, version):
    make, call, name, address = SERVERS[server]
    ours, client, stranger = (certificate(tmp_path, name) for name in ("ours", "client", "stranger"))
    context = serving(*ours, clients=client[0])
    context.maximum_version = version
    with hanging_up(context) as (port, clients):
        trusting = {address: f"{server.split()[0]}://127.0.0.1:{port}", f"{name}_ca_file": str(ours[0])}
        for own, error in ((None, ConfigurationError), (stranger, ConfigurationError), (client, Outage)):
            files = {f"{name}_cert_file": str(own[0]), f"{name}_key_file": str(own[1])} if own else {}
            async with make(config.only(trusting | files)) as store:
                with pytest.raises(error) as raised:
                    await call(store)
            assert (f"STREAM_{name.upper()}_CERT_FILE" in str(raised.value)) == (error is ConfigurationError)
            assert "\n" not in str(raised.value)
            assert bool(clients) == (own is client)


@pytest.mark.parametrize("server", SERVERS)
async def test_renewed_files_are_used_without_a_restart(tmp_path, server):
    """Otherwise a worker is cut off on the day on which its certificate, or the server's, expires."""
    make, call, name, address = SERVERS[server]
    first, second, old, new = (certificate(tmp_path, name) for name in ("first", "second", "old", "new"))
    trusted = tmp_path / "clients.pem"
    trusted.write_text(old[0].read_text() + new[0].read_text())
    ca, cert, key = files = [tmp_path / f"{kind}-file.pem" for kind in ("ca", "cert", "key")]

    def install(source, file):
        shutil.copy(source, tmp_path / "draft")
        (tmp_path / "draft").replace(file)

    for source, file in zip((first[0], *old), files, strict=True):
        install(source, file)
    context = serving(*first, clients=trusted)
    with hanging_up(context) as (port, clients):
        variables = {f"{name}_{kind}_file": str(file) for kind, file in zip(("ca", "cert", "key"), files, strict=True)}
        async with make(config.only(variables | {address: f"{server.split()[0]}://127.0.0.1:{port}"})) as store:

            async def client(error):
                """The name in the certificate that the client has shown before the call ended with this error."""
                clients.clear()
                with pytest.raises(error):
                    await call(store)
                return [client["subject"][0][0][1] for client in clients[:1]]

            assert await client(Outage) == ["old"]
            install(new[0], cert)
            assert await client(Outage) == ["old"]  # its key is not there yet
            install(new[1], key)
            assert await client(Outage) == ["new"]
            context.load_cert_chain(*second)
            assert await client(ConfigurationError) == []
            install(second[0], ca)
            assert await client(Outage) == ["new"]
            context.load_cert_chain(*first)
            assert await client(ConfigurationError) == []  # what is no longer in the file is no longer trusted


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
    assert bool(tls.refusal(error, "STREAM_NEO4J")) is refused
