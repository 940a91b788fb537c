"""TLS as all connections use it: certificates are always verified, and so is the name of the host."""

import ssl
from pathlib import Path

from stream.errors import ConfigurationError

# What OpenSSL says of a server that starts, stops or is overloaded, or of a connection that was spoiled on its way.
PASSING = {
    "TLSV1_ALERT_INTERNAL_ERROR",
    "APPLICATION_DATA_AFTER_CLOSE_NOTIFY",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC",
}


def context(ca_file: Path | None, cert_file: Path | None = None, key_file: Path | None = None) -> ssl.SSLContext:
    """What a client trusts, and the certificate that it shows; files are PEM, the key has no passphrase.

    Without `ca_file` it trusts what the system trusts. Raises `ConfigurationError` naming a file that cannot be used.
    """
    try:
        trusting = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigurationError(f"{ca_file} holds no certificates that can be read: {_reason(error)}") from None
    if cert_file:
        try:
            trusting.load_cert_chain(cert_file, key_file, password="")  # without one OpenSSL would ask the terminal
        except OSError as error:
            raise ConfigurationError(
                f"{cert_file} and {key_file} are no certificate with its key: {_reason(error)}"
            ) from None
    return trusting


def unverified() -> ssl.SSLContext:
    """For a connection that only finds out whether a server speaks TLS: no secret may be sent over it."""
    trusting_anybody = ssl.create_default_context()
    trusting_anybody.check_hostname, trusting_anybody.verify_mode = False, ssl.CERT_NONE
    return trusting_anybody


def refusal(error: BaseException | None) -> str | None:
    """Why TLS refused the connection that failed with this error; None if that was not the cause.

    A connection that broke is no refusal. The causes and contexts of the error are looked through.
    """
    # aiohttp's errors count as OpenSSL's without having their attributes; the real one is their cause.
    if type(error) is ssl.SSLCertVerificationError:
        return f"its certificate is not trusted: {error.verify_message}"
    if type(error) is ssl.SSLError and error.reason not in PASSING:
        return f"no TLS connection can be made: {_reason(error)}"
    if isinstance(error, BaseExceptionGroup):  # one for each router of Neo4j that was tried
        return next(filter(None, map(refusal, error.exceptions)), None)
    return refusal(error.__cause__ or error.__context__) if error else None


def _reason(error: OSError) -> str:
    """An error's own words, without OpenSSL's file and line."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return error.strerror or str(error)
