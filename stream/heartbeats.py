"""When Kafka was last known to count this worker as alive: aiokafka keeps that to itself."""

import time

from aiokafka.consumer.group_coordinator import GroupCoordinator

answered = 0.0  # time.monotonic() when the newest heartbeat that was answered was sent

_do_heartbeat = GroupCoordinator._do_heartbeat


async def _noting(coordinator: GroupCoordinator) -> bool:
    global answered  # noqa: PLW0603 - a process has one consumer in a group
    sent = time.monotonic()
    if success := await _do_heartbeat(coordinator):
        answered = sent
    return bool(success)


GroupCoordinator._do_heartbeat = _noting
