"""Repeats all faults with increasing seeds until the time is up: `make faults SEED=… MINUTES=…`."""

import argparse
import asyncio
import logging
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from conftest import STAND_INS, isolated, own_servers
from faults.faults import FAULTS, Fault
from faults.pipeline import pipeline
from faults.run import Result, run

from stream.local.profile import Profile

NAMED = 10  # differences that are printed

HEAD = """\
# Injected faults

Every fault is done to the real servers and worker processes while chunks, newer versions and tombstones are being
published, some of them in transactions, of which some are aborted. Kafka compacts the topics all the time. Then
everything must recover by itself. Every version that Kafka acknowledged must be in the topic unless a newer one is.
Every later topic must end with the same record of a chunk, and both stores must hold that record. Nothing of an
aborted transaction may be anywhere. No record is at fault, so there must be no dead letter either. What is new is
checked after each fault; all that was ever published, by `stream verify` too, after the last one.
`make faults ONLY="words of a row"` shows one fault; `make test` does each once.
"""

SEVERAL = """\
## Several brokers

The same with several brokers in place of one: each topic has up to three replicas, and an acknowledged record is in all
but one of them at least. A fault of Kafka strikes one broker, chosen at random; the others go on. The workers read from
followers (`STREAM_KAFKA_RACK`).
"""


async def one_round(
    profile: Profile, seed: int, faults: list[Fault], found: dict[Fault, list[Result]], deadline: float
) -> Counter[int]:
    """Every fault once, in the seed's order, until one breaks the pipeline; counts the workers' exit codes."""
    order = random.Random(seed).sample(faults, len(faults))
    result = Result()
    async with pipeline(profile, isolated(profile.environment() | STAND_INS), seed) as flow:
        for fault in order:
            if time.monotonic() > deadline:
                break
            try:
                result = await run(fault, flow, random.Random(f"{seed} {fault}"))
            except Exception as error:
                traceback.print_exc()
                result = Result(wrong=[repr(error)])
            result.seed = seed
            found.setdefault(fault, []).append(result)
            outcome = f"{result.records} records in {result.seconds:.0f} s, wrong: {said(result.wrong)}"
            print(f"seed {seed}: {fault}: {outcome}", flush=True)
            if result.wrong:
                break
        if result.records and not result.wrong:
            result.wrong = await flow.wrong(everything=True)
            print(f"seed {seed}: everything that was published, wrong: {said(result.wrong)}", flush=True)
        return Counter(code for worker in flow.workers.values() for code in worker.exits)


def page(before: str, found: dict[Fault, list[Result]], ends: Counter[int], options: argparse.Namespace) -> str:
    """The page with the runs in place of earlier ones with as many brokers."""
    one, _, several = before.partition(SEVERAL)
    if options.brokers == 1:
        return HEAD + table(found, ends, options) + (f"\n{SEVERAL}{several}" if several else "")
    return f"{one.rstrip()}\n\n{SEVERAL}{table(found, ends, options)}"


def table(found: dict[Fault, list[Result]], ends: Counter[int], options: argparse.Namespace) -> str:
    results = [result for each in found.values() for result in each]
    first, last = min(r.seed for r in results), max(r.seed for r in results)
    told = {"SEED": first, "MINUTES": f"{options.minutes:g}"}
    told |= {"BROKERS": options.brokers} if options.brokers > 1 else {}
    told |= {"ONLY": f'"{options.only}"'} if options.only else {}
    lines = [
        f"\n`make faults {' '.join(f'{name}={value}' for name, value in told.items())}` "
        f"on {datetime.now(UTC):%Y-%m-%d}, "
        f"{os.cpu_count()} cores: seeds {first} to {last}, {len(results)} runs, "
        f"{sum(r.records for r in results):,} records published, workers ended "
        f"{sum(ends.values())} times ({', '.join(f'{n}× {ended(code)}' for code, n in ends.most_common())}), "
        f"**{sum(len(r.wrong) for r in results)} lost or wrong**, "
        f"{sum(r.dead_letters for r in results)} dead letters.\n",
        "| to | what | runs | struck | records | lost or wrong | dead letters | seconds to recover, worst |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for fault in FAULTS:
        each = found.get(fault, [])
        if not each and options.only:
            continue
        lines.append(
            f"| {fault.part} | {fault.what} | {len(each)} | {sum(r.strikes for r in each)} "
            f"| {sum(r.records for r in each):,} | {sum(len(r.wrong) for r in each)} "
            f"| {sum(r.dead_letters for r in each)} | {max((r.recovery for r in each), default=0):.0f} |"
        )
    return "\n".join(lines) + "\n"


def said(wrong: list[str]) -> str:
    return "; ".join([*wrong[:NAMED], *([f"and {len(wrong) - NAMED} more"] if wrong[NAMED:] else [])]) or "nothing"


def ended(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--only", default="", help="faults with these words")
    parser.add_argument("--brokers", type=int, default=1, help="brokers of Kafka")
    parser.add_argument("--page", type=Path, help="write the table here, unless it is of some faults with one broker")
    options = parser.parse_args()
    faults = [fault for fault in FAULTS if options.only in str(fault)]
    if not faults:
        parser.error(f"no fault is called {options.only!r}; they are: {'; '.join(map(str, FAULTS))}")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # unreachable brokers are part of the test
    found: dict[Fault, list[Result]] = {}
    ends: Counter[int] = Counter()
    seed = options.seed
    with own_servers(options.brokers) as profile:
        deadline = time.monotonic() + 60 * options.minutes
        while time.monotonic() < deadline:
            ends += asyncio.run(one_round(profile, seed, faults, found, deadline))
            if options.page and found and (options.brokers > 1 or not options.only):
                options.page.write_text(page(options.page.read_text(), found, ends, options))
            seed += 1
    sys.exit(any(result.wrong or result.dead_letters for each in found.values() for result in each))


if __name__ == "__main__":
    main()
