"""Debian with a Python, which stands in for the official image of Python where no registry can be reached."""

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "PIP_CERT": f"/{CERTIFICATES}"}
(NAME,) = re.findall(r"^ARG PYTHON=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def make(root: Path) -> None:
    """Makes the image's files in the folder `root`. Needs root and debootstrap."""
    python = f"python{NAME.partition(':')[2].partition('-')[0]}"
    include = f"--include=ca-certificates,{python},{python}-venv"
    subprocess.run(["debootstrap", "--variant=minbase", include, "trixie", root], check=True, stdout=subprocess.DEVNULL)
    (root / "usr/local/bin/python").symlink_to(f"/usr/bin/{python}")
    shutil.copy(Path("/") / CERTIFICATES, root / CERTIFICATES)  # a proxy may have an authority of its own
