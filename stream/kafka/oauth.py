"""Access tokens for SASL/OAUTHBEARER (RFC 7628): from a token endpoint, or from a file that another program renews.

aiokafka asks for a token at each new connection. It cannot renew the token of an open connection (KIP-368): a broker
with `connections.max.reauth.ms` closes the connection when its token has expired, and aiokafka connects again.
"""

import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import httpx
from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import OAuthAuthenticator
from aiokafka.errors import KafkaConnectionError, SaslAuthenticationFailed

from stream import tls
from stream.config import Settings
from stream.errors import ConfigurationError, Outage, StreamError

TIMEOUT = 10.0  # seconds for one request to the token endpoint
USED = 0.8  # fraction of a token's lifetime after which a new connection gets a new one
WAIT = (408, 425, 429)  # and 5xx: the endpoint is overloaded or down


class NoToken(KafkaConnectionError):  # type: ignore[misc]
    """There is no token now; aiokafka tries again. `reason` is the error for a person."""

    def __init__(self, reason: StreamError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class TokenFile(AbstractTokenProvider):  # type: ignore[misc]
    """The content of a file, for example of a projected volume in Kubernetes, read for each connection."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def token(self) -> str:
        """The file's content without white space around it; raises `NoToken` if that is not a token."""
        why = ""
        try:
            token = self._path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            token, why = "", f" ({type(error).__name__})"
        if not _is_token(token):
            raise NoToken(
                ConfigurationError(
                    f"no token can be read from {self._path}{why}: set STREAM_KAFKA_OAUTH_TOKEN_FILE to a file with one"
                )
            )
        return token


class ClientCredentials(AbstractTokenProvider):  # type: ignore[misc]
    """Tokens of the client credentials grant (RFC 6749, section 4.4). One is kept for 80 % of its lifetime."""

    def __init__(self, settings: Settings) -> None:
        url, name, secret = settings.kafka_oauth_url, settings.kafka_oauth_client_id, settings.kafka_oauth_client_secret
        assert url and name and secret
        self._url = url
        # RFC 6749, section 2.3.1: both are encoded as in a form.
        self._login = httpx.BasicAuth(quote_plus(name), quote_plus(secret.get_secret_value()))
        self._scope = {"scope": settings.kafka_oauth_scope} if settings.kafka_oauth_scope else {}
        self._tls = tls.context(settings.kafka_oauth_ca_file)
        self._token, self._usable_until = "", 0.0

    async def token(self) -> str:
        """A token that has not nearly expired; raises `NoToken` if the endpoint gives none."""
        asked = time.monotonic()
        if not asked < self._usable_until:  # also if that is not a number
            try:
                self._token, lifetime = await self._fetch()
            except StreamError as error:
                raise NoToken(error) from None
            self._usable_until = asked + USED * lifetime
        return self._token

    async def _fetch(self) -> tuple[str, float]:
        """A new token and its lifetime in seconds."""
        try:
            async with httpx.AsyncClient(verify=self._tls, timeout=TIMEOUT) as http:
                answer = await http.post(
                    self._url, auth=self._login, data={"grant_type": "client_credentials", **self._scope}
                )
        except httpx.RequestError as error:
            if cause := tls.refusal(error, "STREAM_KAFKA_OAUTH", has_cert=False):
                raise ConfigurationError(f"the token endpoint {self._url} cannot be reached, {cause}") from None
            raise Outage(
                f"the token endpoint {self._url} does not answer ({type(error).__name__}): start it, or set "
                "STREAM_KAFKA_OAUTH_URL"
            ) from None
        if answer.is_server_error or answer.status_code in WAIT:
            raise Outage(f"the token endpoint {self._url} answers with {answer.status_code}: wait until it works")
        content = _json(answer)
        if not answer.is_success:
            code = str(content.get("error", ""))
            said = f", {code}" if re.fullmatch(r"[a-z_]{1,40}", code) else ""  # nothing that may quote the secret
            raise ConfigurationError(
                f"the token endpoint {self._url} refuses the client ({answer.status_code}{said}): "
                "set STREAM_KAFKA_OAUTH_URL, …_CLIENT_ID, …_CLIENT_SECRET and …_SCOPE"
            )
        token = content.get("access_token")
        if not (isinstance(token, str) and _is_token(token)):
            raise ConfigurationError(
                f"the answer of {self._url} holds no access token: set STREAM_KAFKA_OAUTH_URL to a token endpoint"
            )
        try:
            return token, float(content["expires_in"])  # some endpoints send a string
        except (KeyError, TypeError, ValueError):
            return token, 0


def provider(settings: Settings) -> AbstractTokenProvider:
    """The provider of tokens that the settings describe."""
    path = settings.kafka_oauth_token_file
    return TokenFile(path) if path else ClientCredentials(settings)


def _is_token(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", text) is not None  # RFC 6750, section 2.1


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        content = answer.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


_step = OAuthAuthenticator.step


async def _step_until_rejected(authenticator: OAuthAuthenticator, answer: bytes | None) -> Any:
    """aiokafka's step ignores a broker's error about the token (RFC 7628, section 3.2.2), which is its only content."""
    if authenticator._token_sent and answer:
        raise SaslAuthenticationFailed("the broker has rejected the token")
    return await _step(authenticator, answer)


OAuthAuthenticator.step = _step_until_rejected
