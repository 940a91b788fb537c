"""Runs `stream dlq …` with an injected fault: `faulty_dlq.py FAULT …`. All other code is the package's."""

import os
import signal
import sys

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from stream.cli import main
from stream.kafka.topics import DLQ

send_and_wait = AIOKafkaProducer.send_and_wait
delete_records = AIOKafkaAdminClient.delete_records


def before_the_second_marker(number):
    """Sends this process a signal once Kafka has the second copy, but not its marker."""

    markers = 0

    async def ending(producer, topic, **record):
        nonlocal markers
        markers += topic.endswith(DLQ)
        if markers == 2:
            os.kill(os.getpid(), number)
        return await send_and_wait(producer, topic, **record)

    return ending


async def interrupted_while_deleting(admin, records):
    os.kill(os.getpid(), signal.SIGINT)
    return await delete_records(admin, records)


FAULTS = {
    "killed_before_the_second_marker": (AIOKafkaProducer, "send_and_wait", before_the_second_marker(signal.SIGKILL)),
    "interrupted_before_the_second_marker": (
        AIOKafkaProducer,
        "send_and_wait",
        before_the_second_marker(signal.SIGINT),
    ),
    "interrupted_while_deleting": (AIOKafkaAdminClient, "delete_records", interrupted_while_deleting),
}

if __name__ == "__main__":
    setattr(*FAULTS[sys.argv.pop(1)])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    main()
