"""Checks what a stage needs before its worker reads the first record."""

import asyncio
import logging

from stream.config import Settings, StageName
from stream.errors import GpuRequired, Outage
from stream.health import probes

log = logging.getLogger(__name__)


async def check(stage: StageName, settings: Settings) -> None:
    """Checks what the stage uses; raises `GpuRequired` if the GPU, or a model server on one, is not available.

    With `require_gpu` off, a model server that is down raises `Outage`: the worker is restarted.
    """
    if stage == "embed":
        await _require_model_server(settings)
    elif stage == "expand" and settings.require_gpu:
        await _require_gpu(settings)


async def _require_gpu(settings: Settings) -> None:
    try:
        await probes.cuda(settings)
    except GpuRequired as error:
        try:
            seen = f"nvidia-smi sees {await probes.nvidia_smi(settings)}"
        except GpuRequired as not_seen:
            seen = str(not_seen)
        raise GpuRequired(f"{error}; {seen}") from None


async def _require_model_server(settings: Settings) -> None:
    """At least one must answer; the client does not use the others while they are down."""
    checks = (probes.embedding_server(settings, address) for address in settings.embed_urls)
    answers = await asyncio.gather(*checks, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, Outage):
            raise answer
    wrong = [str(answer) for answer in answers if isinstance(answer, Outage)]
    if len(wrong) < len(answers):
        for sentence in wrong:
            log.warning("%s", sentence)
        return
    sentence = "; ".join(wrong)
    raise GpuRequired(sentence) if settings.require_gpu else Outage(sentence)
