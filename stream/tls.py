"""TLS for all connections: the certificate and the host name are always verified."""

import ssl
from pathlib import Path

from stream.errors import ConfigurationError

# OpenSSL's errors for a server that starts, stops or is overloaded, or for data damaged on the network: a retry helps.
PASSING = {
    "TLSV1_ALERT_INTERNAL_ERROR",
    "APPLICATION_DATA_AFTER_CLOSE_NOTIFY",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC",
}


def context(ca_file: Path | None, cert_file: Path | None = None, key_file: Path | None = None) -> ssl.SSLContext:
    """A client's CA bundle and its certificate; the files are PEM, the key has no passphrase.

    The default CA bundle is the system's. Raises `ConfigurationError`, which names the file, if one cannot be used.
    """
    try:
        trusting = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigurationError(f"no CA certificates (PEM) can be read from {ca_file}: {_reason(error)}") from None
    if cert_file:
        try:
            trusting.load_cert_chain(cert_file, key_file, password="")  # with none OpenSSL prompts on the terminal
        except OSError as error:
            raise ConfigurationError(
                f"{cert_file} and {key_file} must be a certificate and its key (PEM): {_reason(error)}"
            ) from None
    return trusting


def unverified() -> ssl.SSLContext:
    """For a probe whether a server speaks TLS: nothing is verified, so send no secret over it."""
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    return unchecked


def refusal(error: BaseException | None) -> str | None:
    """Why TLS refused the connection that failed with this error; None if TLS was not the cause.

    Searches the causes and contexts of the error too. A broken connection is not a refusal.
    """
    # aiohttp's errors are subclasses of OpenSSL's without their attributes; the original error is their cause.
    if type(error) is ssl.SSLCertVerificationError:
        return f"its certificate is not trusted: {error.verify_message}"
    if type(error) is ssl.SSLError and error.reason not in PASSING:
        return f"the TLS connection failed: {_reason(error)}"
    if isinstance(error, BaseExceptionGroup):  # one for each router of Neo4j that was tried
        return next(filter(None, map(refusal, error.exceptions)), None)
    return refusal(error.__cause__ or error.__context__) if error else None


def _reason(error: OSError) -> str:
    """An error's message, without OpenSSL's file and line."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return error.strerror or str(error)
