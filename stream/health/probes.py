"""Probes of the GPU and of the model servers: each returns what it found, or raises an error that says what to do."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from stream.config import Settings
from stream.errors import NO_PYTORCH, ConfigurationError, GpuRequired, Outage
from stream.health import tried

QUERY = ("--query-gpu=name,driver_version,memory.free,memory.total", "--format=csv,noheader")
INSTALL_DRIVER = "install NVIDIA's driver (docs/gpu.md), or set REQUIRE_GPU=0 for development on a CPU"
NVIDIA_SMI_TIMEOUT = 20.0  # seconds
START_VLLM = "start it, or set STREAM_EMBED_URL and STREAM_EMBED_MODEL"


async def nvidia_smi(_: Settings) -> str:
    """GPUs, their driver and their memory, as `nvidia-smi` lists them."""
    program = shutil.which("nvidia-smi")
    if not program:
        raise GpuRequired(f"there is no nvidia-smi: {INSTALL_DRIVER}")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(program, *QUERY, stdout=pipe, stderr=pipe)
    try:
        out, err = await asyncio.wait_for(process.communicate(), NVIDIA_SMI_TIMEOUT)
    except TimeoutError:
        process.kill()
        raise GpuRequired(f"nvidia-smi did not answer within {NVIDIA_SMI_TIMEOUT:g} s: {INSTALL_DRIVER}") from None
    said = " | ".join(out.decode(errors="replace").split("\n")).strip(" |")
    if process.returncode or not said:
        said = said or err.decode(errors="replace").strip()
        raise GpuRequired(f"nvidia-smi finds no GPU ({said}): {INSTALL_DRIVER}")
    return said


async def cuda(_: Settings) -> str:
    """The GPUs that PyTorch can use."""
    return await asyncio.to_thread(_cuda)


def _cuda() -> str:
    try:
        import torch  # noqa: PLC0415 - the import takes seconds, and only a stage with a GPU needs it
    except ModuleNotFoundError:
        raise ConfigurationError(NO_PYTORCH) from None
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            why = "PyTorch names no reason"
        except (RuntimeError, AssertionError) as error:
            why = str(error).splitlines()[0]
        raise GpuRequired(f"no CUDA GPU is available to PyTorch ({why}): check nvidia-smi, or {INSTALL_DRIVER}")
    gib = [size / 2**30 for size in torch.cuda.mem_get_info()]
    names = ", ".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count()))
    return f"{torch.__version__} with CUDA {torch.version.cuda}: {names}; {gib[0]:.0f} of {gib[1]:.0f} GiB are free"


async def embedding_server(settings: Settings, address: str) -> str:
    """The server's health, its model and its answer to a probe: length, numbers, norm."""
    from stream.models.embeddings import PROBE, EmbeddingClient  # noqa: PLC0415 - only embed pays for an HTTP client

    async with EmbeddingClient(settings.model_copy(update={"embed_url": address})) as client:
        with remedy(START_VLLM):
            said = await client.examine(address)
            await client.embed([PROBE])
            version = await client.version(address)
    found = [f"vLLM {version}", tried.remark("vLLM", version)] if version else []
    probe = f"the probe's vector has {settings.embed_dimensions} numbers and unit norm"
    return "; ".join(filter(None, [*found, said, probe]))


@contextmanager
def remedy(what_to_do: str) -> Iterator[None]:
    try:
        yield
    except Outage as error:
        raise Outage(f"{error}: {what_to_do}") from None
