"""What must be there before a worker takes its first record."""

from stream.config import Settings, StageName
from stream.errors import GpuRequired, Outage
from stream.models.embeddings import EmbeddingClient


async def check(stage: StageName, settings: Settings) -> None:
    """Checks what the stage uses; raises `GpuRequired` if the GPU, or the model server on one, is not to be had.

    With `require_gpu` off a model server that does not answer is an `Outage`: the worker is started again.
    """
    try:
        if stage == "embed":
            await _model_is_served(settings)
        elif stage == "expand" and settings.require_gpu:
            _cuda_works()
    except Outage as error:
        if settings.require_gpu:
            raise GpuRequired(f"{error}; start it, or set STREAM_EMBED_URL and STREAM_EMBED_MODEL") from error
        raise


async def _model_is_served(settings: Settings) -> None:
    async with EmbeddingClient(settings) as client:
        served = await client.served_models()
    if settings.embed_model not in served:
        raise Outage(
            f"the embedding server at {settings.embed_url} serves {', '.join(served) or 'nothing'}, "
            f"not {settings.embed_model}"
        )


def _cuda_works() -> None:
    import torch  # noqa: PLC0415 - only the stage that needs it pays for the import

    if not torch.cuda.is_available():
        raise GpuRequired(
            "no CUDA GPU is available to PyTorch: check nvidia-smi and the driver; "
            "for development on a CPU set REQUIRE_GPU=0"
        )
