"""The interface between a stage and the batch loop."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stream.config import StageName
from stream.contracts import Contract
from stream.records import Outcome


async def _needs_nothing() -> None: ...


@dataclass(frozen=True)
class Stage:
    """A function of decoded records, without Kafka. The batch loop runs it.

    `process` gets chunks that satisfy `contract`, and returns one outcome for each, in order. It raises `Outage` when
    no record of the batch is at fault. A stage with `writes_stores` writes to the stores, not to a topic: it gets
    tombstones too, chunks with their `position`, and one batch at a time, because two records of one version must reach
    the stores in the topic's order. `answer` probes the systems that the stage needs: it returns if they answer, and
    raises an error if not.
    """

    name: StageName
    contract: Contract
    process: Callable[[Sequence[Any]], Awaitable[Sequence[Outcome]]]
    answer: Callable[[], Awaitable[None]] = _needs_nothing
    writes_stores: bool = False
