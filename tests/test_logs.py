"""If these fail, an outage fills the disk with one log line or hides other lines, or a record can forge log lines."""

import logging

from stream import logs
from stream.config import Settings


def test_a_client_s_complaint_is_written_once_a_minute_and_every_line_of_ours(monkeypatch, capfd):
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.root.level)
    levels = {name: logging.getLogger(name).level for name in logs.CHATTY}
    logs.configure(Settings(_env_file=None))
    for second in range(100):
        logging.getLogger("aiokafka").error("Unable connect to node with id %s: %s", second, "refused")
        logging.getLogger("aiokafka.consumer").error("Failed fetch messages")
        logging.getLogger("stream.worker.outputs").warning("chunks/%d@%d rejected", 0, second)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    lines = capfd.readouterr().err.splitlines()
    assert len([line for line in lines if "Unable connect" in line]) == 1
    assert len([line for line in lines if "Failed fetch" in line]) == 1
    assert len([line for line in lines if "rejected" in line]) == 100


def test_what_a_record_holds_neither_commands_a_terminal_nor_begins_a_line():
    line = logs._OneLine("%(message)s").format(
        logging.LogRecord("stream", logging.WARNING, "", 0, "rejected: %s", ("\x1b[2J\x9b\n2026 all is well",), None)
    )
    assert line == "rejected: \\x1b[2J\\x9b\\n2026 all is well"
