"""What a stage is to the batch loop."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stream.config import StageName
from stream.contracts import Contract
from stream.records import Outcome


async def _needs_nothing() -> None: ...


@dataclass(frozen=True)
class Stage:
    """What the loop runs: a function of decoded records, without Kafka.

    `process` gets chunks that keep `contract`, and returns one outcome for each, in order. It raises `Outage` when
    nothing in the batch is at fault. With `writes_stores` its effects are its own: it gets tombstones too, and one
    batch at a time, because two records of one version must reach the stores in the topic's order. `answer` returns if
    what the stage needs would answer now, and raises what is wrong with it.
    """

    name: StageName
    contract: Contract
    process: Callable[[Sequence[Any]], Awaitable[Sequence[Outcome]]]
    answer: Callable[[], Awaitable[None]] = _needs_nothing
    writes_stores: bool = False
