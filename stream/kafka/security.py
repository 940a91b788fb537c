"""TLS and SASL of Kafka: the clients' arguments, and the reason why no client could connect."""

import ssl
from contextlib import closing
from typing import Any

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.admin import SaslHandShakeRequest

from stream import tls
from stream.config import Settings
from stream.errors import ConfigurationError, Outage, StreamError
from stream.kafka import oauth

PROBE_MS = 5000
CLOSED_CONNECTION = (KafkaError, ConnectionResetError, BrokenPipeError, ssl.SSLError)


def arguments(settings: Settings) -> dict[str, Any]:
    """The TLS and SASL arguments that every aiokafka client needs.

    Raises `ConfigurationError` if a certificate or key cannot be read.
    """
    protocol, mechanism, password = (
        settings.kafka_security_protocol,
        settings.kafka_sasl_mechanism,
        settings.kafka_password,
    )
    found: dict[str, Any] = {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        found["ssl_context"] = tls.context(*settings.tls_files("kafka"))
    if mechanism == "OAUTHBEARER":
        found |= {"sasl_mechanism": mechanism, "sasl_oauth_token_provider": oauth.provider(settings)}
    elif password:
        found |= {
            "sasl_mechanism": mechanism,
            "sasl_plain_username": settings.kafka_user,
            "sasl_plain_password": password.get_secret_value(),
        }
    return found


async def startup_error(settings: Settings) -> StreamError:
    """The reason why no client could start. aiokafka only logs it, so this connects to each server once more."""
    ours, closed = settings.kafka_security_protocol, False
    for host, port, _ in collect_hosts(settings.kafka_servers):
        error: Exception | None = None
        try:
            (await create_conn(host, port, request_timeout_ms=PROBE_MS, **arguments(settings))).close()
        except (KafkaError, OSError, TimeoutError) as failed:
            if not isinstance(failed, CLOSED_CONNECTION):
                continue
            error = failed
        if isinstance(error, oauth.NoToken):
            return error.reason
        closed = True
        if (theirs := await _protocol(host, port)) not in (None, ours):
            return ConfigurationError(
                f"Kafka at {host}:{port} expects {theirs}, not {ours}: set STREAM_KAFKA_SECURITY_PROTOCOL"
            )
        if isinstance(error, SaslAuthenticationFailed | UnsupportedSaslMechanismError):
            login = "USER, STREAM_KAFKA_PASSWORD"
            if settings.kafka_sasl_mechanism == "OAUTHBEARER":
                login = "OAUTH_…"
            return ConfigurationError(
                f"Kafka at {host}:{port}: authentication failed ({type(error).__name__}): set STREAM_KAFKA_{login} "
                "and STREAM_KAFKA_SASL_MECHANISM"
            )
        if cause := tls.refusal(error, "STREAM_KAFKA"):
            return ConfigurationError(f"Kafka at {host}:{port} cannot be reached with {ours}, {cause}")
    if closed:
        return Outage(
            f"Kafka at {settings.kafka_servers} accepts a connection with {ours} and closes it: wait until it has "
            "started, or set STREAM_KAFKA_SECURITY_PROTOCOL to the protocol that it expects"
        )
    return Outage(f"Kafka does not answer at {settings.kafka_servers}; start it, or set STREAM_KAFKA_SERVERS")


async def _protocol(host: str, port: int) -> str | None:
    """The security protocol of a listener, probed without a login or certificate; None if the probe fails."""
    for encryption, context in (("PLAINTEXT", None), ("SSL", tls.unverified())):
        try:
            connection = await create_conn(
                host, port, request_timeout_ms=PROBE_MS, security_protocol=encryption, ssl_context=context
            )
            with closing(connection):
                answer = await connection.send(SaslHandShakeRequest("PLAIN"))
        except (KafkaError, OSError, TimeoutError):
            continue
        wants_login = answer.error_code != IllegalSaslStateError.errno
        return f"SASL_{encryption}" if wants_login else encryption
    return None
