"""The supervisord of a home: the daemon, its socket, and its configuration file with the programs to run."""

import hashlib
import os
import select
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Collection
from configparser import ConfigParser
from http.client import HTTPException
from io import StringIO
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

from stream.errors import ConfigurationError, Outage
from stream.local.profile import Profile, write_private

LOG_BYTES = "10MB"
SHUTTING_DOWN, BAD_NAME, ALREADY_STARTED, NOT_RUNNING = 6, 10, 60, 70  # of supervisor.xmlrpc.Faults


def folder(profile: Profile) -> Path:
    """The folder of supervisord's files, except its log and its socket."""
    return profile.home / "supervisor"


def call(profile: Profile, method: str, *arguments: Any, accept: Collection[int] = ()) -> Any:
    """Calls an XML-RPC method of supervisord and returns the result; None for a fault whose code is in `accept`.

    Raises `ConfigurationError` if supervisord does not know the program, and `Outage` if supervisord does not run.
    """
    try:
        from supervisor.xmlrpc import SupervisorTransport  # noqa: PLC0415 - an extra that only the local profile needs
    except ModuleNotFoundError:
        raise ConfigurationError("the local profile needs supervisor: pip install 'chunk-stream[local]'") from None
    proxy = ServerProxy("http://localhost", transport=SupervisorTransport(serverurl=f"unix://{_address(profile)}"))
    try:
        return getattr(proxy.supervisor, method)(*arguments)
    except Fault as fault:
        if fault.faultCode in accept:
            return None
        if fault.faultCode == BAD_NAME:
            raise ConfigurationError(
                f"there is no program called {arguments[0]} in {profile.home}; start it first"
            ) from None
        raise Outage(f"supervisord refused {method} {arguments}: {fault.faultString}; try again") from None
    except (OSError, HTTPException):
        raise Outage(f"nothing is running in {profile.home}; start it first") from None


def answers(profile: Profile) -> bool:
    """Whether supervisord runs. True also while it shuts down."""
    try:
        call(profile, "getState", accept=(SHUTTING_DOWN,))
    except Outage:
        return False
    return True


def launch(profile: Profile) -> None:
    """Starts supervisord as a daemon without programs."""
    if shutil.which("setpriv") is None:
        raise ConfigurationError("the local profile needs Linux and setpriv (Debian: apt install util-linux)")
    logs = profile.home / "logs"
    logs.mkdir(exist_ok=True)
    conf = ConfigParser(interpolation=None)
    conf["unix_http_server"] = {"file": value(str(_socket_path(profile))), "chmod": "0600"}
    conf["supervisord"] = {
        "logfile": value(str(logs / "supervisord.log")),
        "logfile_maxbytes": LOG_BYTES,
        "logfile_backups": "1",
        "pidfile": value(str(_pid_file(profile))),
        "childlogdir": value(str(logs)),
    }
    if os.geteuid() == 0:
        conf["supervisord"]["user"] = "root"
    factory = "supervisor.rpcinterface:make_main_rpcinterface"
    conf["rpcinterface:supervisor"] = {"supervisor.rpcinterface_factory": factory}
    write(profile, conf)
    # A program gets only the settings of its definition, not those of the shell that started supervisord.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("STREAM_") and k != "REQUIRE_GPU"}
    command = [sys.executable, "-P", "-X", "utf8", "-m", "supervisor.supervisord", "-c", str(_path(profile))]
    done = subprocess.run(  # noqa: S603 (this interpreter and this package's file)
        command, cwd=profile.home, env=inherited, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Outage(f"supervisord failed to start: {done.stderr.strip() or done.stdout.strip()}")


def shut_down(profile: Profile) -> None:
    """Makes supervisord stop its programs, the newest first, and end. Returns when all have ended."""
    daemon = os.pidfd_open(int(_pid_file(profile).read_text()))
    try:
        call(profile, "shutdown", accept=(SHUTTING_DOWN,))
        select.select([daemon], [], [])
    finally:
        os.close(daemon)
    Path(_address(profile)).parent.rmdir()


def read(profile: Profile) -> ConfigParser:
    """supervisord's configuration, with a section `program:…` for each program. Empty before the first launch."""
    conf = ConfigParser(interpolation=None)
    conf.read(_path(profile), encoding="utf-8")
    return conf


def write(profile: Profile, conf: ConfigParser) -> None:
    """Replaces supervisord's configuration. It holds secrets, so only its owner can read it."""
    text = StringIO()
    conf.write(text)
    write_private(_path(profile), text.getvalue())


def value(text: str) -> str:
    """Escapes a value for the configuration. Raises `ConfigurationError` for a value that cannot be escaped."""
    if "\n" in text or " ;" in text or " #" in text:
        raise ConfigurationError(f"supervisord cannot take {text!r}: use no line break, ' ;' or ' #'")
    return text.replace("%", "%%")


def _path(profile: Profile) -> Path:
    return folder(profile) / "supervisord.conf"


def _address(profile: Profile) -> str:
    return read(profile).get("unix_http_server", "file", fallback="").replace("%%", "%")


def _pid_file(profile: Profile) -> Path:
    return folder(profile) / "supervisord.pid"


def _socket_path(profile: Profile) -> Path:
    """A path that is short enough for a unix socket for any home, in a folder that only its owner may enter."""
    digest = hashlib.sha256(str(profile.home).encode()).hexdigest()[:12]
    place = Path(tempfile.gettempdir()) / f"stream-{os.geteuid()}-{digest}"
    place.mkdir(mode=0o700, exist_ok=True)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigurationError(
            f"{place} must be a folder that this user owns and no other user may enter (mode 0700); remove it"
        )
    path = place / "socket"
    if len(os.fsencode(path)) > 107:
        raise ConfigurationError(f"{path} is too long for a unix socket; set TMPDIR to a shorter folder")
    return path
