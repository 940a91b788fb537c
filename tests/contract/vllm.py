"""A real vLLM on a CPU, in its own environment, with a random Qwen3 of one layer; not for measuring speed."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

HOME = Path(os.environ.get("STREAM_TEST_VLLM_HOME") or Path(__file__).parents[2] / ".local" / "vllm")
LOG = HOME / "log"
END = "<|endoftext|>"
PATIENCE = 600  # seconds until vLLM starts or answers; on two idle cores it starts within 50


@dataclass(frozen=True)
class Server:
    """A server at this address; `process` is None if the tests have not started it."""

    address: str
    process: subprocess.Popen[bytes] | None = None

    def signal_engine(self, number: int) -> None:
        """Sends a signal to the engine processes. If it kills them, the HTTP server survives for a moment."""
        assert self.process
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        for child in (int(pid) for task in tasks for pid in task.read_text().split()):
            os.kill(child, number)


def random_model(folder: Path) -> Path:
    """Qwen3-Embedding-8B's interface: 4096 numbers, 32,768 tokens, an end token after each text. A byte is a token."""
    vocabulary = {byte: n for n, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary[END] = end = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END).save_pretrained(folder)
    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=end + 8,
        hidden_size=4096,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder)
    return folder


@contextmanager
def vllm(model: Path, name: str, key: str, port: int) -> Iterator[Server]:
    """Serves the model under this name; requests need the key."""
    python = HOME / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"{python} is missing: run `make vllm`, or name a server with STREAM_TEST_VLLM_URL")
    command = [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", name),
        *("--runner", "pooling", "--convert", "embed", "--dtype", "bfloat16", "--max-model-len", "32768"),
        *("--enforce-eager", "--api-key", key, "--host", "127.0.0.1", "--port", str(port)),
    ]
    variables = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(HOME / "cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # a thread that waits leaves its core to the tests
    }
    address = f"http://127.0.0.1:{port}"
    with LOG.open("wb") as log, subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log) as server:
        try:
            _await(server, address)
            yield Server(address, server)
        finally:
            server.terminate()


def _await(server: subprocess.Popen[bytes], address: str) -> None:
    started = time.monotonic()
    while True:
        try:
            if httpx.get(f"{address}/health", trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        if server.poll() is not None or time.monotonic() - started > PATIENCE:
            raise RuntimeError(f"vLLM did not start (exit code {server.poll()}): see {LOG}")
        time.sleep(0.5)
