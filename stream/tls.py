"""TLS for all connections: the certificate and the host name are always verified."""

import logging
import re
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stream.errors import ConfigurationError

log = logging.getLogger(__name__)

# OpenSSL's errors for a server that starts, stops or is overloaded, or for data damaged on the network: a retry helps.
PASSING = {
    "TLSV1_ALERT_INTERNAL_ERROR",
    "APPLICATION_DATA_AFTER_CLOSE_NOTIFY",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC",
}
# OpenSSL's names of the alerts with which a server refuses a client without a certificate or with a wrong one.
CLIENT_CERTIFICATE = re.compile(r"_ALERT_(\w*CERTIFICATE\w*|UNKNOWN_CA)$")


def context(ca_file: Path | None, cert_file: Path | None = None, key_file: Path | None = None) -> ssl.SSLContext:
    """A client's CA bundle and its certificate; the files are PEM, the key has no passphrase.

    The default CA bundle is the system's. A file that has changed is read again before the next connection, so a
    renewed certificate needs no restart. Raises `ConfigurationError`, which names the file, if one cannot be used now.
    """
    return _Renewed(ca_file, cert_file, key_file) if ca_file or cert_file else ssl.create_default_context()


class _Renewed(ssl.SSLContext):
    """Takes each connection's context from the files as they are then.

    If they cannot be used, for example because only one of them is replaced yet, the context of the last files stays.
    """

    def __new__(cls, *_: Path | None) -> "_Renewed":
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> None:
        self._files = ca_file, cert_file, key_file
        self._seen = _states(self._files)
        self._context = _read(*self._files)

    def _newest(self) -> ssl.SSLContext:
        states = _states(self._files)
        if states != self._seen:
            try:
                self._context, self._seen = _read(*self._files), states
                log.info("read again: %s", ", ".join(str(file) for file in self._files if file))
            except ConfigurationError as error:
                log.warning("the files as they were before stay in use: %s", error)
        return self._context

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """asyncio calls it for each connection."""
        return self._newest().wrap_bio(*arguments, **options)

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        return self._newest().wrap_socket(*arguments, **options)

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        """httpx calls it before each connection."""
        self._newest().set_alpn_protocols(alpn_protocols)


def _states(files: Iterable[Path | None]) -> list[tuple[int, int] | None]:
    """What differs once a file was written or replaced, or its permissions were changed; None if there is none."""
    found: list[tuple[int, int] | None] = []
    for file in files:
        try:
            status = file.stat() if file else None
        except OSError:
            status = None
        found.append(status and (status.st_ino, status.st_ctime_ns))
    return found


def _read(ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext:
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


def refusal(error: BaseException | None, settings: str, *, has_cert: bool = True) -> str | None:
    """Why TLS refused the connection that failed with this error, and what to do; None if TLS was not the cause.

    Searches the causes and contexts of the error too. A broken connection is not a refusal. `settings` is what the
    names of the settings start with, for example STREAM_KAFKA; `has_cert` says whether a client certificate is one.
    """
    own = f"{settings}_CERT_FILE and {settings}_KEY_FILE"
    # aiohttp's errors are subclasses of OpenSSL's without their attributes; the original error is their cause.
    if type(error) is ssl.SSLCertVerificationError:
        return f"its certificate is not trusted: {error.verify_message}: set {settings}_CA_FILE"
    if type(error) is ssl.SSLError and CLIENT_CERTIFICATE.search(error.reason or ""):
        return f"it wants a client certificate that it trusts: {_reason(error)}" + (f": set {own}" if has_cert else "")
    if type(error) is ssl.SSLError and error.reason not in PASSING:
        return f"the TLS connection failed: {_reason(error)}: set {settings}_CA_FILE" + (f", {own}" if has_cert else "")
    if isinstance(error, BaseExceptionGroup):  # one for each router of Neo4j that was tried
        return next(filter(None, (refusal(one, settings, has_cert=has_cert) for one in error.exceptions)), None)
    return refusal(error.__cause__ or error.__context__, settings, has_cert=has_cert) if error else None


def _reason(error: OSError) -> str:
    """An error's message, without OpenSSL's file and line."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return error.strerror or str(error)
