"""One supervisord a home: the daemon, the socket to talk to it, the file that says what it shall run."""

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
SHUTTING_DOWN, BAD_NAME, ALREADY_STARTED, NOT_RUNNING = 6, 10, 60, 70  # as supervisor.xmlrpc.Faults has them


def folder(profile: Profile) -> Path:
    """Where supervisord's own files are, but for its log and its socket."""
    return profile.home / "supervisor"


def call(profile: Profile, method: str, *arguments: Any, accept: Collection[int] = ()) -> Any:
    """What supervisord's XML-RPC method answers; None for a fault whose code is in `accept`.

    Raises `ConfigurationError` for a program that it does not know and `Outage` where it does not run.
    """
    try:
        from supervisor.xmlrpc import SupervisorTransport  # noqa: PLC0415 - an extra: the other commands do without
    except ModuleNotFoundError:
        raise ConfigurationError("the local profile needs supervisor: pip install 'chunk-stream[local]'") from None
    proxy = ServerProxy("http://localhost", transport=SupervisorTransport(serverurl=f"unix://{_address(profile)}"))
    try:
        return getattr(proxy.supervisor, method)(*arguments)
    except Fault as fault:
        if fault.faultCode in accept:
            return None
        if fault.faultCode == BAD_NAME:
            raise ConfigurationError(f"no program called {arguments[0]} was ever started in {profile.home}") from None
        raise Outage(f"supervisord refused {method} {arguments}: {fault.faultString}; try again") from None
    except (OSError, HTTPException):
        raise Outage(f"nothing is running in {profile.home}; start it first") from None


def answers(profile: Profile) -> bool:
    """Whether supervisord runs, also while it shuts down."""
    try:
        call(profile, "getState", accept=(SHUTTING_DOWN,))
    except Outage:
        return False
    return True


def launch(profile: Profile) -> None:
    """Starts supervisord as a daemon that knows no program yet."""
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
    # A program's settings are those of its definition, not what happened to be set where supervisord was started.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("STREAM_") and k != "REQUIRE_GPU"}
    command = [sys.executable, "-P", "-X", "utf8", "-m", "supervisor.supervisord", "-c", str(_path(profile))]
    done = subprocess.run(  # noqa: S603 (the interpreter that runs this, and our own file)
        command, cwd=profile.home, env=inherited, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Outage(f"supervisord does not start: {done.stderr.strip() or done.stdout.strip()}")


def shut_down(profile: Profile) -> None:
    """Lets supervisord stop its programs, the newest first, and end; returns when all are gone."""
    daemon = os.pidfd_open(int(_pid_file(profile).read_text()))
    try:
        call(profile, "shutdown", accept=(SHUTTING_DOWN,))
        select.select([daemon], [], [])
    finally:
        os.close(daemon)
    Path(_address(profile)).parent.rmdir()


def read(profile: Profile) -> ConfigParser:
    """Its configuration, with a section `program:…` for each program; empty before the first launch."""
    conf = ConfigParser(interpolation=None)
    conf.read(_path(profile), encoding="utf-8")
    return conf


def write(profile: Profile, conf: ConfigParser) -> None:
    """Replaces its configuration, which holds secrets and so is its owner's only."""
    text = StringIO()
    conf.write(text)
    write_private(_path(profile), text.getvalue())


def value(text: str) -> str:
    """A value for its configuration, where % begins an expansion; what cannot be quoted is a `ConfigurationError`."""
    if "\n" in text or " ;" in text or " #" in text:
        raise ConfigurationError(f"supervisord cannot be told {text!r}: use no line break, ' ;' or ' #' in a name")
    return text.replace("%", "%%")


def _path(profile: Profile) -> Path:
    return folder(profile) / "supervisord.conf"


def _address(profile: Profile) -> str:
    return read(profile).get("unix_http_server", "file", fallback="").replace("%%", "%")


def _pid_file(profile: Profile) -> Path:
    return folder(profile) / "supervisord.pid"


def _socket_path(profile: Profile) -> Path:
    """A path short enough for a unix socket, however deep the home lies, in a folder that only its owner may enter."""
    digest = hashlib.sha256(str(profile.home).encode()).hexdigest()[:12]
    place = Path(tempfile.gettempdir()) / f"stream-{os.geteuid()}-{digest}"
    place.mkdir(mode=0o700, exist_ok=True)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigurationError(f"{place} should be a folder of yours that nobody else may enter; remove it")
    path = place / "socket"
    if len(os.fsencode(path)) > 107:
        raise ConfigurationError(f"{path} is too long for a unix socket; set TMPDIR to a shorter folder")
    return path
