"""If these fail, the image's target `lean`, which has no PyTorch, does not start what it is for."""

import subprocess
import sys

import pytest

HIDE = "import sys; sys.modules |= dict.fromkeys(['torch', 'transformers', 'tokenizers', 'safetensors'])"
LEAN = ("worker.run", "stages.embed", "stages.index", "stages.reuse", "stores", "serve.access", "local.embedder")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", f"{HIDE}; {code}", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_what_loads_no_splade_model_is_imported():
    commands = "for name in MODULES.values(): import_module(f'stream.cli.{name}')"
    done = python(
        f"import {', '.join(f'stream.{name}' for name in LEAN)}\n"
        f"from importlib import import_module; from stream.cli import MODULES\n{commands}"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [["encode", "-"], ["bench", "splade"]])
def test_what_needs_pytorch_says_so_in_one_sentence(command):
    done = python("from stream.__main__ import main; main()", *command)
    assert done.returncode == 78
    assert "needs PyTorch" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("code", ["_cuda()", "asyncio.run(preflight.check('expand', Settings(require_gpu=True)))"])
def test_a_worker_and_the_doctor_say_so_too(code):
    done = python(
        "import asyncio; from stream.config import Settings; from stream.errors import ConfigurationError;"
        f"from stream.health import preflight; from stream.health.probes import _cuda\ntry: {code}\n"
        "except ConfigurationError as error: print(error)"
    )
    assert "needs PyTorch" in done.stdout, done.stderr
