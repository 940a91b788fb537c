"""If these fail, AWS refuses what we send to Amazon OpenSearch Service, or somebody reads a secret of AWS in a log."""

import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from faults.proxy import Forward, Proxy
from support import by_words, expanded

from stream import config, logs
from stream.config import Settings
from stream.errors import ConfigurationError, Outage
from stream.records import Tombstone
from stream.stores.base import Put
from stream.stores.opensearch import OpenSearchStore
from stream.vectors import unpack

REGION = "eu-central-1"
SECRET, TOKEN = "hush-secret", "hush-token"
ROTATING = """\
import datetime, json, pathlib, sys
count = pathlib.Path(sys.argv[1])
n = int(count.read_text()) + 1
count.write_text(str(n))
if n > 3:
    sys.exit("no more")
expiration = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=1)
print(json.dumps({"Version": 1, "AccessKeyId": f"key-{n}", "SecretAccessKey": f"secret-{n}",
                  "SessionToken": f"token-{n}", "Expiration": expiration.isoformat()}))
"""


@pytest.fixture(autouse=True)
def nothing_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def static(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)


@asynccontextmanager
async def amazon(upstream: str, secret_of: Callable[[str], str]) -> AsyncIterator[tuple[str, list[str]]]:
    """The address of a proxy that forwards what is signed as AWS wants it, and the keys that it has seen."""
    seen: list[str] = []

    async def let_in(request: web.Request, body: bytes, forward: Forward) -> web.Response | None:
        parts = request.headers["Authorization"].removeprefix("AWS4-HMAC-SHA256 ").split(", ")
        scope, names, signature = (part.partition("=")[2] for part in parts)
        key, _, region, service, _ = scope.split("/")
        seen.append(key)
        headers = {name: request.headers[name] for name in names.split(";")}
        assert {"host", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token"} == headers.keys()
        made = AWSRequest(request.method, f"http://{request.host}{request.raw_path}", headers, body)
        made.context["timestamp"] = headers["x-amz-date"]
        signer = SigV4Auth(Credentials(key, secret_of(key)), service, region)
        assert headers["x-amz-content-sha256"] == signer.payload(made)
        expected = signer.signature(signer.string_to_sign(made, signer.canonical_request(made)), made)
        if (signature, region, service) == (expected, REGION, "es"):
            return None
        message = f"The request signature we calculated does not match.\n\nThe Canonical String was '{headers}'"
        return web.json_response({"message": message}, status=403)

    async with Proxy(upstream, "") as proxy, proxy.spoiling(let_in):
        yield proxy.url, seen


def put(chunk_id: str) -> Put:
    chunk = expanded(chunk_id, "a text about ßockets, 100 % + more")
    return Put(chunk, unpack(chunk["embedding_qwen"]))


@pytest.mark.servers
async def test_every_request_is_signed_with_its_body_and_its_parameters(settings: Settings, static: None) -> None:
    async with amazon(settings.opensearch_url, lambda _: SECRET) as (url, seen):
        own = settings.model_copy(update={"opensearch_url": url, "opensearch_aws_region": REGION})
        async with OpenSearchStore(own) as store:
            await store.set_up()
            assert await store.write([put("a"), put("ü b*,c"), Tombstone("gone", 1)]) == {}
            assert await store.count() == 2
            assert len(await store.stored(["a", "ü b*,c", "gone", "never"])) == 3
            assert set(await by_words(store, "text")) == {"a", "ü b*,c"}
            assert [found.number for found in await store.generations()] == [1]
            await store.settle(1)
            await store.go_live(1)
            assert "OpenSearch" in await store.examine()
            await store.drop(1)
    assert set(seen) == {"key"}


@pytest.mark.servers
async def test_credentials_are_refreshed_and_an_aws_that_gives_none_is_an_outage(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rotate.py").write_text(ROTATING)
    (tmp_path / "count").write_text("0")
    process = f"{sys.executable} {tmp_path / 'rotate.py'} {tmp_path / 'count'}"
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {process}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    async with amazon(settings.opensearch_url, lambda key: key.replace("key", "secret")) as (url, seen):
        own = settings.model_copy(update={"opensearch_url": url, "opensearch_aws_region": REGION})
        async with OpenSearchStore(own) as store:
            for _ in range(2):
                await store.generations()
            assert seen == ["key-2", "key-3"]
            with pytest.raises(Outage, match="the AWS credentials for OpenSearch cannot be refreshed"):
                await store.generations()


def made(**variables: str) -> OpenSearchStore:
    return OpenSearchStore(config.only({"opensearch_aws_region": REGION, **variables}))


async def test_a_refused_signature_is_named_without_a_secret(
    static: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.root.level)
    levels = {name: logging.getLogger(name).level for name in logs.CHATTY}
    logs.configure(config.only({"log_level": "debug"}))
    logging.getLogger("stream").debug("everything is logged")
    async with amazon("", lambda _: "another") as (url, _), made(opensearch_url=url) as store:
        with pytest.raises(ConfigurationError, match="STREAM_OPENSEARCH_AWS_REGION") as raised:
            await store.examine()
        shown = str(raised.value) + repr(store._client.transport.seed_connections) + repr(vars(store))
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logged = "".join(capfd.readouterr())
    assert "everything is logged" in logged
    assert "hush" not in shown + logged


def test_a_machine_without_credentials_or_with_half_of_them_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="there are no AWS credentials"):
        made()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    with pytest.raises(ConfigurationError, match=r"cannot be read: .*AWS_SECRET_ACCESS_KEY"):
        made()


def test_a_missing_extra_is_named(static: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'chunk-stream\[aws\]'"):
        made()
