"""Programs that supervisord runs, watches and restarts.

A program that crashes is started again at once. Should supervisord itself be killed, the kernel kills its programs
with it, so that none is left behind unwatched and holding its port.
"""

import errno
import shlex
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from threading import Event

from stream.errors import ConfigurationError, Outage
from stream.local import supervisord
from stream.local.profile import HOST, Profile, locked, variable
from stream.local.supervisord import ALREADY_STARTED, NOT_RUNNING, SHUTTING_DOWN, call, value

PORT_GRACE = 3.0  # seconds: a JVM that was just killed holds its ports until the kernel has freed its memory
POLL = 0.1  # seconds between two looks at a program that is on its way


@dataclass(frozen=True)
class Program:
    """One process to keep running.

    `ports` names the fields of `Profile` whose ports it binds. `ready` says whether it answers: False while it does
    not, a `StreamError` if it never will. `address` is for people. `privileges` are options of setpriv, such as another
    user. After an exit code in `final` it stays down.
    """

    name: str
    command: Sequence[str]
    log: Path
    ready: Callable[[], bool]
    address: str
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    ports: Sequence[str] = ()
    privileges: Sequence[str] = ()
    ready_seconds: float = 120
    stop_seconds: int = 30
    final: Sequence[int] = (0, 78, 99)


@dataclass(frozen=True)
class ProgramStatus:
    """What is true of a program now: `state` is supervisord's word for it; `ready` is None if nobody could ask."""

    name: str
    state: str
    pid: int | None
    seconds_up: float
    ready: bool | None
    address: str


def up(profile: Profile, programs: Sequence[Program], on_event: Callable[[str], None] = print) -> None:
    """Starts what does not run, restarts what is defined differently now, and returns when all are ready.

    Raises `ConfigurationError` for a port that another process holds, before anything is started, and `Outage` with
    the end of its log for a program that dies or is not ready in time; the others stay up.
    """
    profile.make()
    with locked(supervisord.folder(profile)):
        if not supervisord.answers(profile):
            supervisord.launch(profile)
        _define(profile, programs, on_event)
        running = {info["name"] for info in call(profile, "getAllProcessInfo") if info["pid"]}
        idle = [program for program in programs if program.name not in running]
        _await_free_ports(profile, idle)
        for program in idle:
            on_event(f"{program.name} is starting")
            start(profile, program.name)
    _await_ready(profile, programs, on_event)


def down(profile: Profile) -> None:
    """Stops every program, the newest first, then supervisord; returns when all are gone."""
    if not supervisord.folder(profile).exists():
        return
    with locked(supervisord.folder(profile)):
        if supervisord.answers(profile):
            supervisord.shut_down(profile)


def start(profile: Profile, name: str) -> None:
    """Starts a program that `up` has defined; does not wait until it is ready."""
    call(profile, "startProcess", name, accept=(ALREADY_STARTED,))


def stop(profile: Profile, name: str) -> None:
    """Stops a program and returns when it is gone; it stays down until `start` or `up`."""
    call(profile, "stopProcess", name, accept=(NOT_RUNNING,))


def kill(profile: Profile, name: str, signal: Signals) -> None:
    """Sends a signal to a program; supervisord starts it again if it ends by that."""
    call(profile, "signalProcess", name, str(int(signal)))


def status(profile: Profile, programs: Sequence[Program] = ()) -> list[ProgramStatus]:
    """The given programs and all others that `up` has defined; only the given ones can be asked if they are ready."""
    known = {program.name: program for program in programs}
    found = call(profile, "getAllProcessInfo", accept=(SHUTTING_DOWN,)) if supervisord.answers(profile) else []
    infos = {info["name"]: info for info in found or ()}
    absent = {"statename": "STOPPED" if found is not None else "STOPPING", "pid": 0}

    def look(name: str) -> ProgramStatus:
        info = infos.get(name, absent)
        seconds = info["now"] - info["start"] if info["pid"] else 0
        program = known.get(name)
        ready = bool(info["pid"]) and program.ready() if program else None
        return ProgramStatus(
            name, info["statename"], info["pid"] or None, seconds, ready, program.address if program else ""
        )

    names = dict.fromkeys([*known, *infos, *_defined(profile)])
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        return list(pool.map(look, names))


def _defined(profile: Profile) -> list[str]:
    sections = supervisord.read(profile).sections()
    return [section.removeprefix("program:") for section in sections if section.startswith("program:")]


def _define(profile: Profile, programs: Sequence[Program], on_event: Callable[[str], None]) -> None:
    conf = supervisord.read(profile)
    for program in programs:
        program.log.parent.mkdir(parents=True, exist_ok=True)
        conf[f"program:{program.name}"] = _section(program)
    supervisord.write(profile, conf)
    [[added, changed, _]] = call(profile, "reloadConfig")
    for program in programs:
        if program.name in changed:
            on_event(f"{program.name} is defined differently now and so begins anew")
            stop(profile, program.name)
            call(profile, "removeProcessGroup", program.name)
        if program.name in added or program.name in changed:
            call(profile, "addProcessGroup", program.name)


def _section(program: Program) -> dict[str, str]:
    for name, setting in program.environment.items():
        if '"' in setting or setting != setting.strip("'"):
            raise ConfigurationError(f"supervisord cannot pass {name} to {program.name} with the quotes in it")
    section = {
        "command": shlex.join(["setpriv", "--pdeathsig", "KILL", *program.privileges, *program.command]),
        "directory": str(program.directory),
        "environment": ",".join(f'{name}="{setting}"' for name, setting in sorted(program.environment.items())),
        "stdout_logfile": value(str(program.log)),  # supervisord expands this one twice
        "stdout_logfile_maxbytes": supervisord.LOG_BYTES,
        "stdout_logfile_backups": "2",
        "redirect_stderr": "true",
        "autostart": "false",
        "autorestart": "unexpected",
        "exitcodes": ",".join(map(str, program.final)),
        "startsecs": "0",  # with more, supervisord starts again what ends at once, whatever its exit code
        "stopwaitsecs": str(program.stop_seconds),
        "killasgroup": "true",
    }
    return {key: value(text) for key, text in section.items()}


def _await_free_ports(profile: Profile, programs: Sequence[Program]) -> None:
    deadline = time.monotonic() + PORT_GRACE
    for program in programs:
        for name in program.ports:
            port = getattr(profile, name)
            while _taken(port):
                if time.monotonic() > deadline:
                    raise ConfigurationError(
                        f"another process holds port {port}, which {program.name} needs: "
                        f"end it, or set {variable(name)} to another port"
                    )
                time.sleep(POLL)


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a connection that lingers would count
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise
    return False


def _await_ready(profile: Profile, programs: Sequence[Program], on_event: Callable[[str], None]) -> None:
    abandoned = Event()
    with ThreadPoolExecutor(max(1, len(programs))) as pool:
        waits = {pool.submit(_until_ready, profile, program, abandoned): program for program in programs}
        try:
            for wait in as_completed(waits):
                wait.result()
                on_event(f"{waits[wait].name} is ready: {waits[wait].address}")
        finally:
            abandoned.set()


def _until_ready(profile: Profile, program: Program, abandoned: Event) -> None:
    deadline = time.monotonic() + program.ready_seconds
    first = call(profile, "getProcessInfo", program.name)["pid"]
    while not abandoned.wait(POLL):
        pid = call(profile, "getProcessInfo", program.name)["pid"]
        if not pid or pid != first:
            stop(profile, program.name)
            raise Outage(f"{program.name} ended before it was ready; {_end_of(program.log)}")
        if program.ready():
            return
        if time.monotonic() > deadline:
            raise Outage(f"{program.name} is not ready after {program.ready_seconds:g} s; {_end_of(program.log)}")


def _end_of(log: Path, lines: int = 20) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return f"the end of {log}:\n" + "\n".join(text.splitlines()[-lines:])
