"""If these fail, no client of Kafka gets a token when it connects, or an error shows the secret."""

from contextlib import asynccontextmanager

import pytest
from guards import TokenEndpoint, certificate, serving

from stream.config import Settings
from stream.errors import ConfigurationError, Outage
from stream.kafka import oauth

SECRET = "hush+ 字/="  # must be encoded
LOGIN = {"kafka_security_protocol": "SASL_PLAINTEXT", "kafka_sasl_mechanism": "OAUTHBEARER"}


def asking(url, **more):
    told = {"kafka_oauth_url": url, "kafka_oauth_client_id": "ön e", "kafka_oauth_client_secret": SECRET}
    return oauth.provider(Settings(_env_file=None, **LOGIN, **told | more))


@asynccontextmanager
async def endpoint(**options):
    async with TokenEndpoint("ön e", SECRET, **options).serving() as serves:
        yield serves


async def refused(tokens):
    with pytest.raises(oauth.NoToken) as raised:
        await tokens.token()
    assert "hush" not in str(raised.getrepr(chain=True))
    assert "\n" not in str(raised.value)
    return raised.value.reason


async def test_a_token_is_kept_until_it_has_nearly_expired(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(oauth.time, "monotonic", lambda: now)
    async with endpoint(lifetime=100) as serves:
        tokens = asking(serves.url, kafka_oauth_scope="kafka")
        assert await tokens.token() == serves.tokens[0]
        now += 79
        assert await tokens.token() == serves.tokens[0]
        now += 2
        assert await tokens.token() == serves.tokens[1]
    assert serves.scopes == ["kafka", "kafka"]


@pytest.mark.parametrize("lifetime", [None, "soon", float("nan"), -1, [3600]])
async def test_a_token_without_a_lifetime_is_not_kept(lifetime):
    async with endpoint() as serves:
        serves.body = {"access_token": "abc", "expires_in": lifetime}
        tokens = asking(serves.url)
        assert [await tokens.token(), await tokens.token()] == ["abc", "abc"]
    assert serves.scopes == [None, None]


async def test_a_lifetime_may_be_a_string():
    async with endpoint() as serves:
        serves.body = {"access_token": "abc", "expires_in": "3599"}
        tokens = asking(serves.url)
        assert [await tokens.token(), await tokens.token()] == ["abc", "abc"]
    assert serves.scopes == [None]


async def test_a_token_that_is_still_good_is_used_while_the_endpoint_is_down():
    async with endpoint() as serves:
        tokens = asking(serves.url)
        await tokens.token()
    assert await tokens.token() == serves.tokens[0]


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_endpoint_that_is_overloaded_or_down_is_an_outage(status):
    async with endpoint() as serves:
        serves.status = status
        assert isinstance(await refused(asking(serves.url)), Outage)
        serves.status = 200
        assert await asking(serves.url).token()
    reason = await refused(asking(serves.url))
    assert isinstance(reason, Outage)
    assert "STREAM_KAFKA_OAUTH_URL" in str(reason)


async def test_a_client_that_is_refused_is_told_so():
    async with endpoint() as serves:
        reason = await refused(asking(serves.url, kafka_oauth_client_secret="hush, wrong"))
    assert isinstance(reason, ConfigurationError)
    assert "(401, invalid_client)" in str(reason)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": f"the secret {SECRET} is wrong", "error_description": SECRET}),
        (404, SECRET),
        (302, None),
        (200, [SECRET]),
        (200, {"error": SECRET}),
        (200, {"access_token": f"{SECRET}\r\nX-Injected: 1"}),
        (200, {"access_token": "", "expires_in": 1}),
    ],
)
async def test_whatever_else_an_endpoint_answers_is_a_wrong_setting_and_is_not_quoted(status, body):
    async with endpoint() as serves:
        serves.status, serves.body = status, body
        assert isinstance(await refused(asking(serves.url)), ConfigurationError)


async def test_an_endpoint_with_an_unknown_certificate_gets_no_secret(tmp_path):
    cert, key = certificate(tmp_path, "idp")
    stranger, _ = certificate(tmp_path, "stranger")
    async with TokenEndpoint("ön e", SECRET).serving(serving(cert, key)) as serves:
        assert await asking(serves.url, kafka_oauth_ca_file=cert).token()
        reason = await refused(asking(serves.url, kafka_oauth_ca_file=stranger))
    assert isinstance(reason, ConfigurationError)
    assert "STREAM_KAFKA_OAUTH_CA_FILE" in str(reason)
    assert len(serves.scopes) == 1


async def test_a_file_is_read_again_for_each_connection(tmp_path):
    file = tmp_path / "token"
    tokens = oauth.provider(Settings(_env_file=None, **LOGIN, kafka_oauth_token_file=file))
    assert str(file) in str(await refused(tokens))
    for content in ("one.two.", "three.four."):
        file.write_text(f"{content}\n")
        assert await tokens.token() == content


@pytest.mark.parametrize("content", [b"", b"hush hush", b"hush\x01", b"hush\xff"])
async def test_a_file_without_a_token_is_a_wrong_setting(tmp_path, content):
    file = tmp_path / "token"
    file.write_bytes(content)
    tokens = oauth.provider(Settings(_env_file=None, **LOGIN, kafka_oauth_token_file=file))
    assert isinstance(await refused(tokens), ConfigurationError)
