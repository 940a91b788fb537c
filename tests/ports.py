"""Free ports for servers that tests start. A module of its own: pytest loads a conftest.py more than once."""

import os
import socket
from contextlib import ExitStack, suppress
from itertools import cycle, islice

PROCESS = os.environ.get("PYTEST_XDIST_WORKER", "")  # "gw0", "gw1", … with `pytest -n`, else nothing
PORTS = 1000  # of each process, below those that the kernel gives to clients
FIRST_PORT = 20_000 + PORTS * int(PROCESS.removeprefix("gw") or 9)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, and that no other process of `pytest -n` takes."""
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            port = next(_ports)
            with suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
    return found


_ports = islice(cycle(range(FIRST_PORT, FIRST_PORT + PORTS)), os.getpid() % PORTS, None)
