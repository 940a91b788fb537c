"""Hooks for mkdocs: they make the README the first page, and fix the links between the README and the pages."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Adds the README as `index.md`, with its links relative to docs/."""
    readme = Path(config.config_file_path).with_name("README.md").read_text()
    files.append(File.generated(config, "index.md", content=readme.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces links to the README, which is outside docs/, by links to the first page."""
    return markdown.replace("](../README.md", "](index.md")
