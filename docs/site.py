"""For mkdocs: the README is the first page, and links between it and the pages lead there."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Adds the README."""
    readme = Path(config.config_file_path).with_name("README.md").read_text()
    files.append(File.generated(config, "index.md", content=readme.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What is a link on the way out of docs/ is one to the first page."""
    return markdown.replace("](../README.md", "](index.md")
