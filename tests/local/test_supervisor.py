"""If these fail, the wrong programs run, a crash is neither repaired nor explained, or processes are left running."""

import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ports import free_ports
from support import wait_until

from stream.errors import ConfigurationError, Outage
from stream.local import supervisor
from stream.local.profile import Profile
from stream.local.supervisor import Program, ProgramStatus

SERVE = """
import os, socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("serving with", os.environ.get("SETTING"), flush=True)
while True:
    server.accept()[0].close()
"""


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def ended(pid: int, seconds: float = 20) -> bool:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    return bool(select.select([process], [], [], seconds)[0])


@pytest.fixture
def profile(tmp_path: Path) -> Iterator[Profile]:
    """A home whose path is too long for a unix socket and has characters that a configuration file must escape."""
    embed, expand = free_ports(2)
    profile = Profile(tmp_path / ("deep" * 30) / "100% of o'home é", embed_port=embed, expand_port=expand)
    yield profile
    supervisor.down(profile)


def program(profile: Profile, name: str, text: str, **changes: object) -> Program:
    port = getattr(profile, f"{name}_port", 0)
    profile.home.mkdir(parents=True, exist_ok=True)
    (profile.home / f"{name}.py").write_text(text)
    made = Program(
        name=name,
        command=[sys.executable, f"{name}.py", str(port)],
        log=profile.home / "logs" / f"{name}.log",
        ready=lambda: connects(port),
        address=f"127.0.0.1:{port}",
        directory=profile.home,
        ready_seconds=20,
        stop_seconds=5,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def server(profile: Profile, name: str, **changes: object) -> Program:
    return program(profile, name, SERVE, ports=(f"{name}_port",), **changes)


def running(profile: Profile, *programs: Program) -> dict[str, ProgramStatus]:
    return {status.name: status for status in supervisor.status(profile, programs)}


def pid_of(profile: Profile, name: str) -> int | None:
    return running(profile)[name].pid


def daemon_pid(profile: Profile) -> int:
    return int((profile.home / "supervisor" / "supervisord.pid").read_text())


def test_up_twice_leaves_alone_what_runs(profile: Profile) -> None:
    programs = [server(profile, "embed"), server(profile, "expand")]
    events: list[str] = []
    supervisor.up(profile, programs, events.append)
    first = running(profile, *programs)
    assert {"embed is starting", f"embed is ready: 127.0.0.1:{profile.embed_port}"} <= set(events)
    assert [s.ready for s in first.values()] == [True, True]

    supervisor.up(profile, programs, events.append)
    assert {name: s.pid for name, s in running(profile).items()} == {name: s.pid for name, s in first.items()}


def test_what_begins_is_not_awaited_until_up_is_called(profile: Profile) -> None:
    """Programs that load for seconds load at the same time."""
    awaited = profile.home / "awaited"
    slow = server(profile, "embed", ready=awaited.exists)
    supervisor.begin(profile, [slow])
    begun = running(profile, slow)["embed"]
    assert (begun.pid is not None, begun.ready) == (True, False)

    awaited.touch()
    supervisor.up(profile, [slow])
    assert (pid_of(profile, "embed"), running(profile, slow)["embed"].ready) == (begun.pid, True)


def test_a_changed_definition_restarts_only_that_program(profile: Profile) -> None:
    embed, expand = server(profile, "embed"), server(profile, "expand")
    supervisor.up(profile, [embed, expand])
    before = running(profile)

    supervisor.up(profile, [replace(embed, environment={"SETTING": "100%, it's new"}), expand])
    after = running(profile)
    assert after["embed"].pid != before["embed"].pid
    assert after["expand"].pid == before["expand"].pid
    assert "serving with 100%, it's new" in embed.log.read_text()


def test_a_program_added_later_leaves_the_others_alone(profile: Profile) -> None:
    supervisor.up(profile, [server(profile, "embed")])
    before = pid_of(profile, "embed")
    supervisor.up(profile, [server(profile, "expand")])
    assert pid_of(profile, "embed") == before


def test_what_is_set_in_the_shell_does_not_reach_a_program(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_KAFKA_SERVERS", "production:9092")
    dump = "import os, time; print(sorted(os.environ), flush=True); time.sleep(60)"
    dumper = program(profile, "dump", dump, ready=lambda: dumper.log.stat().st_size > 0)
    supervisor.up(profile, [dumper])
    assert "PATH" in dumper.log.read_text()
    assert "STREAM_KAFKA_SERVERS" not in dumper.log.read_text()


def test_a_killed_program_comes_back(profile: Profile) -> None:
    embed = server(profile, "embed")
    supervisor.up(profile, [embed])
    before = pid_of(profile, "embed")
    supervisor.kill(profile, "embed", signal.SIGKILL)
    wait_until(lambda: pid_of(profile, "embed") not in (None, before))
    wait_until(lambda: running(profile, embed)["embed"].ready is True)


@pytest.mark.parametrize(("code", "stays_down"), [(0, True), (78, True), (99, True), (75, False)])
def test_an_exit_code_says_whether_to_start_again(profile: Profile, code: int, stays_down: bool) -> None:
    """The first run waits for the file `word`, so that it becomes ready; every later run ends at once."""
    ready, word = profile.home / "ready", profile.home / "word"
    text = (
        f"import os, sys, time; open({str(ready)!r}, 'a').write('x')\n"
        f"while not os.path.exists({str(word)!r}): time.sleep(0.02)\n"
        f"sys.exit({code})"
    )
    supervisor.up(profile, [program(profile, "embed", text, ready=ready.exists)])
    word.touch()
    if stays_down:
        wait_until(lambda: running(profile)["embed"].state == "EXITED")
        assert ready.read_text() == "x"
    else:
        wait_until(lambda: len(ready.read_text()) > 2)


def test_a_program_that_dies_at_once_shows_the_end_of_its_log(profile: Profile) -> None:
    text = "import sys; [print('line', i) for i in range(30)]; sys.exit('no such model')"
    with pytest.raises(Outage) as caught:
        supervisor.up(profile, [program(profile, "embed", text, ready=lambda: False)])
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("embed ended before it was ready; the end of ")
    assert lines[-2:] == ["line 29", "no such model"]
    assert len(lines) == 21
    assert pid_of(profile, "embed") is None, "it would restart and crash for ever without notice"


def test_a_program_that_is_never_ready_is_an_outage(profile: Profile) -> None:
    with pytest.raises(Outage, match=r"embed is not ready after 0\.5 s"):
        supervisor.up(profile, [server(profile, "embed", ready=lambda: False, ready_seconds=0.5)])


def test_a_taken_port_is_named_and_nothing_starts(profile: Profile) -> None:
    programs = [server(profile, "expand"), server(profile, "embed")]
    with (
        socket.create_server(("127.0.0.1", profile.embed_port)),
        pytest.raises(ConfigurationError, match=f"port {profile.embed_port}.*STREAM_LOCAL_EMBED_PORT"),
    ):
        supervisor.up(profile, programs)
    assert [s.pid for s in supervisor.status(profile, programs)] == [None, None]


def test_stop_and_start(profile: Profile) -> None:
    embed = server(profile, "embed")
    supervisor.up(profile, [embed])
    supervisor.stop(profile, "embed")
    supervisor.stop(profile, "embed")
    assert running(profile, embed)["embed"] == ProgramStatus("embed", "STOPPED", None, 0, False, embed.address)
    supervisor.start(profile, "embed")
    wait_until(lambda: running(profile, embed)["embed"].ready is True)


def test_a_program_that_was_never_started_is_one_sentence(profile: Profile) -> None:
    with pytest.raises(Outage, match="nothing is running"):
        supervisor.stop(profile, "embed")
    supervisor.up(profile, [server(profile, "embed")])
    with pytest.raises(ConfigurationError, match="no program called kafak"):
        supervisor.stop(profile, "kafak")


def test_down_leaves_no_process_and_can_be_repeated(profile: Profile) -> None:
    programs = [server(profile, "embed"), server(profile, "expand")]
    supervisor.down(profile)
    supervisor.up(profile, programs)
    pids = [pid for s in supervisor.status(profile) if (pid := s.pid)] + [daemon_pid(profile)]
    supervisor.down(profile)
    assert [ended(pid, 0) for pid in pids] == [True, True, True]
    supervisor.down(profile)
    assert [s.state for s in supervisor.status(profile, programs)] == ["STOPPED", "STOPPED"]


def test_programs_stop_in_the_reverse_order_of_their_start(profile: Profile) -> None:
    """A worker that outlives its stores cannot finish its batches."""
    last_words = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('bye')))\n"
        "print('ready', flush=True)\nwhile True: time.sleep(0.05)"
    )
    names = ["z", "a", "m"]
    logs = [profile.home / "logs" / f"{name}.log" for name in names]
    programs = [
        program(profile, name, last_words, ready=lambda log=log: "ready" in log.read_text())
        for name, log in zip(names, logs, strict=True)
    ]
    supervisor.up(profile, programs)
    supervisor.down(profile)
    daemon_log = (profile.home / "logs" / "supervisord.log").read_text()
    assert [line.split()[4] for line in daemon_log.splitlines() if "stopped:" in line] == ["m", "a", "z"]


def test_a_killed_supervisord_takes_its_programs_along_and_up_starts_anew(profile: Profile) -> None:
    programs = [server(profile, "embed")]
    supervisor.up(profile, programs)
    orphan = pid_of(profile, "embed")
    assert orphan is not None
    os.kill(daemon_pid(profile), signal.SIGKILL)
    assert ended(orphan), "it would hold its port without supervision"
    assert [(s.state, s.pid, s.ready) for s in supervisor.status(profile, programs)] == [("STOPPED", None, False)]
    supervisor.up(profile, programs)
    assert running(profile, *programs)["embed"].ready is True


def test_a_strangers_socket_folder_is_refused(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    supervisor.up(profile, [])
    (folder,) = tmp_path.glob("stream-*")
    supervisor.down(profile)
    folder.mkdir(mode=0o700)
    folder.chmod(0o777)
    with pytest.raises(ConfigurationError, match="no other user may enter"):
        supervisor.up(profile, [])


@pytest.mark.parametrize("value", ["two\nlines", "a ;comment", "a #comment"])
def test_what_supervisord_would_misread_is_refused(profile: Profile, value: str) -> None:
    with pytest.raises(ConfigurationError, match="supervisord cannot take"):
        supervisor.up(profile, [server(profile, "embed", command=[value])])


@pytest.mark.parametrize("setting", ['with "double" quotes', "a quote at the end'"])
def test_a_setting_that_supervisord_would_change_is_refused(profile: Profile, setting: str) -> None:
    with pytest.raises(ConfigurationError, match="SETTING"):
        supervisor.up(profile, [server(profile, "embed", environment={"SETTING": setting})])
