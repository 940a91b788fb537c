"""Programs that supervisord runs and restarts.

A program that crashes is restarted at once. If supervisord itself is killed, the kernel kills its programs too, so that
no unsupervised program holds a port.
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

PORT_GRACE = 3.0  # seconds: a killed JVM holds its ports until the kernel has freed its memory
POLL = 0.1  # seconds between two checks of a program that starts, and of a port


@dataclass(frozen=True)
class Program:
    """One process to keep running.

    `ports` names the fields of `Profile` whose ports it binds. `ready` returns False while it does not answer, and
    raises a `StreamError` if it never will. `address` is for people. `privileges` are options of setpriv, for example
    another user. After an exit code in `final` it is not restarted.
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
    final: Sequence[int] = (0, 65, 78, 99)


@dataclass(frozen=True)
class ProgramStatus:
    """The status of a program now: `state` is supervisord's name for it; `ready` is None if it has no check."""

    name: str
    state: str
    pid: int | None
    seconds_up: float
    ready: bool | None
    address: str


def up(profile: Profile, programs: Sequence[Program], on_event: Callable[[str], None] = print) -> None:
    """Starts programs as `begin` does, and returns when all are ready.

    Raises `Outage` with the end of the log if a program ends or is not ready in time; the other programs keep running.
    """
    begin(profile, programs, on_event)
    _await_ready(profile, programs, on_event)


def begin(profile: Profile, programs: Sequence[Program], on_event: Callable[[str], None] = print) -> None:
    """Starts programs that do not run, and restarts those whose definition changed. Does not wait for them.

    Raises `ConfigurationError`, before it starts any program, if another process holds a port.
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


def down(profile: Profile) -> None:
    """Stops every program, the newest first, then supervisord. Returns when all have ended."""
    if not supervisord.folder(profile).exists():
        return
    with locked(supervisord.folder(profile)):
        if supervisord.answers(profile):
            supervisord.shut_down(profile)


def start(profile: Profile, name: str) -> None:
    """Starts a program that `up` has defined. Does not wait until it is ready."""
    call(profile, "startProcess", name, accept=(ALREADY_STARTED,))


def stop(profile: Profile, name: str) -> None:
    """Stops a program and returns when it has ended. Only `start` or `up` starts it again."""
    call(profile, "stopProcess", name, accept=(NOT_RUNNING,))


def kill(profile: Profile, name: str, signal: Signals) -> None:
    """Sends a signal to a program. If the signal ends it, supervisord restarts it."""
    call(profile, "signalProcess", name, str(int(signal)))


def status(profile: Profile, programs: Sequence[Program] = ()) -> list[ProgramStatus]:
    """The status of these programs and of all others that `up` has defined. Only these have a readiness check."""
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
            on_event(f"{program.name} restarts, because its definition changed")
            stop(profile, program.name)
            call(profile, "removeProcessGroup", program.name)
        if program.name in added or program.name in changed:
            call(profile, "addProcessGroup", program.name)


def _section(program: Program) -> dict[str, str]:
    for name, setting in program.environment.items():
        if '"' in setting or setting != setting.strip("'"):
            raise ConfigurationError(
                f"supervisord cannot pass {name} to {program.name}: its value contains \" or begins or ends with '"
            )
    section = {
        "command": shlex.join(["setpriv", "--pdeathsig", "KILL", *program.privileges, *program.command]),
        "directory": str(program.directory),
        "environment": ",".join(f'{name}="{setting}"' for name, setting in sorted(program.environment.items())),
        "stdout_logfile": value(str(program.log)),  # escaped twice, because supervisord expands it twice
        "stdout_logfile_maxbytes": supervisord.LOG_BYTES,
        "stdout_logfile_backups": "2",
        "redirect_stderr": "true",
        "autostart": "false",
        "autorestart": "unexpected",
        "exitcodes": ",".join(map(str, program.final)),
        "startsecs": "0",  # with more, supervisord restarts a program that ends at once, for any exit code
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
                        f"end that process, or set {variable(name)} to another port"
                    )
                time.sleep(POLL)


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else connections in TIME_WAIT would count
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise
    return False


def _await_ready(profile: Profile, programs: Sequence[Program], on_event: Callable[[str], None]) -> None:
    cancelled = Event()
    with ThreadPoolExecutor(max(1, len(programs))) as pool:
        waits = {pool.submit(_until_ready, profile, program, cancelled): program for program in programs}
        try:
            for wait in as_completed(waits):
                wait.result()
                on_event(f"{waits[wait].name} is ready: {waits[wait].address}")
        finally:
            cancelled.set()


def _until_ready(profile: Profile, program: Program, cancelled: Event) -> None:
    deadline = time.monotonic() + program.ready_seconds
    first = call(profile, "getProcessInfo", program.name)["pid"]
    while not cancelled.wait(POLL):
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
