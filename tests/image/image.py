"""If these fail, the image cannot be built, or its containers do not start or stop. `make test-image` runs them.

buildah builds the Dockerfile without a daemon and without a registry of images. Debian with the same Python, made by
debootstrap, stands in for the official base image. A package with nothing but torch's name stands in for PyTorch,
unless TORCH_INDEX names an index of the real one.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import base_image
import pytest

ROOT = Path(__file__).parent.parent.parent
USER = 10001
PID_1 = """
mount -t proc proc {root}/proc
exec chroot --userspec={user}:{user} {root} /usr/bin/env -i {variables} sh -c 'cd /home/stream; exec {command}'
"""

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("buildah", "debootstrap", "unshare"))),
    reason="needs root, buildah and debootstrap: apt-get install buildah debootstrap",
)


class Buildah:
    """buildah with a storage of its own."""

    def __init__(self, folder: Path) -> None:
        self._command = ["buildah", f"--root={folder}/storage", f"--runroot={folder}/run", "--storage-driver=overlay"]

    def __call__(self, *arguments: str | Path) -> str:
        done = subprocess.run([*self._command, *arguments], check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"buildah {arguments[0]} ended with {done.returncode}:\n{done.stderr[-3000:]}"
        return done.stdout.strip()

    def image(self, name: str) -> dict:
        """The configuration of an image, as OCI writes it."""
        return json.loads(self("inspect", "--type=image", name))["OCIv1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Holds gigabytes, so it is deleted at once."""
    made = tmp_path_factory.mktemp("image")
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def buildah(folder: Path) -> Buildah:
    """With the base image."""
    found = Buildah(folder)
    root = folder / "root"
    base_image.make(root)
    container = found("from", "scratch")
    found("add", "-q", container, root, "/")
    found("config", *(f"--env={name}={value}" for name, value in base_image.ENVIRONMENT.items()), container)
    found("commit", "-q", "--rm", container, base_image.NAME)
    shutil.rmtree(root)
    return found


@pytest.fixture(scope="module")
def index(folder: Path) -> str:
    """An index of packages with PyTorch, or with its name only."""
    if "TORCH_INDEX" in os.environ:
        return os.environ["TORCH_INDEX"]
    (version,) = re.findall(r"^torch==(\S+)", (ROOT / "compose/requirements.txt").read_text(), re.MULTILINE)
    packages = folder / "index" / "torch"
    packages.mkdir(parents=True)
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(packages / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch/__init__.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"torch/__init__.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    (packages / "index.html").write_text(f'<a href="torch-{version}-py3-none-any.whl">torch</a>')
    return "file:///index"


def build(buildah: Buildah, folder: Path, index: str, source: Path, name: str, target: str = "cpu", *more: str) -> None:
    options = ["--layers", "--pull-never", "--network=host", "--isolation=chroot", f"--target={target}"]
    mounts = [f"--volume={folder}/index:/index:ro"] if index.startswith("file:") else []
    buildah("bud", "-q", *options, *mounts, f"--build-arg=TORCH_INDEX={index}", *more, f"--tag={name}", source)


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    """What git has of this tree."""
    subprocess.run(["git", "clone", "-q", ROOT, folder / "source"], check=True)
    return folder / "source"


@pytest.fixture(scope="module")
def container(buildah: Buildah, folder: Path, index: str, source: Path) -> str:
    build(buildah, folder, index, source, "chunk-stream:cpu")
    return buildah("from", "--pull-never", "localhost/chunk-stream:cpu")


@pytest.fixture(scope="module")
def lean(buildah: Buildah, folder: Path, index: str, source: Path) -> str:
    build(buildah, folder, index, source, "chunk-stream:lean", "lean")
    return buildah("from", "--pull-never", "localhost/chunk-stream:lean")


@pytest.mark.parametrize("target", ["container", "lean"])
def test_the_commands_run_as_a_user_who_cannot_change_the_program(buildah, target, request):
    container = request.getfixturevalue(target)

    def run(*command: str) -> str:
        return buildah("run", "--isolation=chroot", "--network=host", container, "--", *command)

    assert run("stream", "--version")
    assert run("sh", "-c", "id -u; test ! -w /venv && test -w . && test -w .cache && echo right") == f"{USER}\nright"
    assert "STREAM_KAFKA_SERVERS" in run("stream", "settings")


def test_another_user_can_read_what_it_needs(buildah, container):
    command = ("run", "--isolation=chroot", "--user=20002", container, "--", "stream", "--version")
    assert buildah(*command)


@pytest.mark.parametrize("seconds", [0.05, 0.3, 1])  # the kernel drops what comes before tini itself has started
def test_sigterm_ends_a_worker_that_is_process_1_at_any_moment_of_its_start(buildah, container, seconds):
    root = buildah("mount", container)
    (Path(root) / "proc").mkdir(exist_ok=True)
    entrypoint = buildah.image("localhost/chunk-stream:cpu")["config"]["Entrypoint"]
    settings = "REQUIRE_GPU=0 STREAM_KAFKA_SERVERS=127.0.0.1:1 STREAM_OUTAGE_BOUND=60"
    script = PID_1.format(
        root=root,
        user=USER,
        variables=f"PATH=/venv/bin:/usr/bin:/bin HOME=/home/stream {settings}",
        command=" ".join([*entrypoint, "worker", "index"]),
    )
    with subprocess.Popen(["unshare", "--pid", "--fork", "--mount", "bash", "-c", script]) as outer:
        while not (inner := started(outer.pid)):
            assert outer.poll() is None
        time.sleep(seconds)  # the moments differ on purpose
        os.kill(inner, signal.SIGTERM)
        assert outer.wait(30) in (0, 128 + signal.SIGTERM)


def started(parent: int) -> int | None:
    """The child of `unshare` when it runs the entry point."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in children:
        if "worker" in Path(f"/proc/{child}/cmdline").read_text().split("\0"):
            return int(child)
    return None


def test_the_lean_image_has_no_pytorch_and_says_so(buildah, lean):
    with pytest.raises(AssertionError, match=r"ended with 78:\s+stream: SPLADE needs PyTorch"):
        buildah("run", "--isolation=chroot", lean, "--", "stream", "encode", "-")


def test_a_wheel_of_pytorch_with_another_hash_is_not_installed(buildah, folder, index, source):
    with pytest.raises(AssertionError, match="DO NOT MATCH THE HASHES"):
        build(buildah, folder, index, source, "chunk-stream:other", "cpu", f"--build-arg=TORCH_SHA256={'0' * 64}")


def test_a_changed_line_of_code_changes_the_last_layer_only(buildah, folder, index, source, container):
    before = buildah.image("localhost/chunk-stream:cpu")["rootfs"]["diff_ids"]
    with (source / "stream" / "__init__.py").open("a") as file:
        file.write("# changed\n")
    build(buildah, folder, index, source, "chunk-stream:changed")
    after = buildah.image("localhost/chunk-stream:changed")["rootfs"]["diff_ids"]
    same = sum(one == other for one, other in zip(before, after, strict=True))
    assert same == len(before) - 1
