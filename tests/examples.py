"""The examples of docs/producers.md, run against the real Kafka."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

from aiokafka.partitioner import murmur2
from support import read

from stream.config import Settings
from stream.records import Decoder, Rejected, Tombstone

PAGE = (Path(__file__).parent.parent / "docs" / "producers.md").read_text()
EXAMPLES = dict(reversed(re.findall(r"```(python|java|go|javascript|sh)\n(.*?)```", PAGE, re.DOTALL)))
PARTITIONS = 6
# With these keys, murmur2 of Java, murmur2 as an unsigned number and CRC32 choose three different partitions of six.
KEYS = {"handbook#12": "handbook#13", "handbook#11": "handbook#8"}
WRITTEN = {"handbook#13": 7, "handbook#8": -8}


def example(language: str, flow: Settings) -> str:
    """The page's first example, with the address of Kafka, the name of the topic and the keys replaced."""
    names = {"localhost:9092": flow.kafka_servers, '"chunks"': f'"{flow.topic}"'} | KEYS
    code = EXAMPLES[language]
    for name, other in names.items():
        code = code.replace(name, other)
    return code


async def run(*command: str, folder: Path, **variables: str) -> None:
    """Runs a command in a folder; it must succeed."""
    done = await finished(*command, folder=folder, **variables)
    assert done.returncode == 0, done.stderr


async def finished(*command: str, folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """The result of a command that ran in a folder."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path} | variables
    return await asyncio.to_thread(
        subprocess.run, command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


async def published(flow: Settings) -> dict[str, int]:
    """Versions by chunk, negative for a tombstone. Asserts that every record is valid and where murmur2 puts it."""
    decode, found = Decoder.of("chunk", flow), {}
    for record in await read(flow, flow.topic):
        assert record.key
        assert record.partition == (murmur2(record.key) & 0x7FFFFFFF) % PARTITIONS
        match decode(record):
            case Rejected(detail=detail):
                raise AssertionError(detail)
            case Tombstone(chunk_id, version):
                found[chunk_id] = -version
            case chunk:
                found[chunk["chunk_id"]] = chunk["version"]
    return found
