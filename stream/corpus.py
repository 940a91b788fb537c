"""Real text for the demo: the docstrings of the standard library of the Python that runs this.

The sources are parsed with `ast`; no module is imported.
"""

import ast
import copy
import platform
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from stream.errors import ConfigurationError
from stream.records import Chunk

SKIPPED = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages"}

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def chunks() -> Iterator[Chunk]:
    """One chunk for each docstring, ordered by module, then line: the same on every run with the same Python.

    `doc_id` is the module; `chunk_id` is the module for its own docstring, else "module:qualified.name", with "#2",
    "#3" and so on for further docstrings of the same name. `text` is the docstring as the parser reads it, not
    cleaned; `table_lines` are the decorators and the signature. Raises `ConfigurationError` if this Python has no
    sources.
    """
    library = Path(sysconfig.get_path("stdlib"))
    modules = dict(sorted(_modules(library)))
    if not modules:
        raise ConfigurationError(
            f"{library} contains no Python sources; use a Python that has its standard library as source files there"
        )
    for module, file in modules.items():
        yield from _module_chunks(module, ast.parse(file.read_bytes(), file))


def _modules(library: Path) -> Iterator[tuple[str, Path]]:
    for file in library.rglob("*.py"):
        parts = file.relative_to(library).with_suffix("").parts
        if all(part.isidentifier() for part in parts) and SKIPPED.isdisjoint(parts):
            yield ".".join(parts).removesuffix(".__init__"), file


def _module_chunks(module: str, tree: ast.Module) -> Iterator[Chunk]:
    if text := _docstring(tree):
        yield _chunk(module, module, text, {"kind": "module", "name": module}, line=1)
    seen: Counter[str] = Counter()
    for node, name, kind in _definitions(tree):
        if text := _docstring(node):
            seen[name] += 1
            suffix = f"#{seen[name]}" if seen[name] > 1 else ""
            chunk = _chunk(f"{module}:{name}{suffix}", module, text, {"kind": kind, "name": name}, node.lineno)
            chunk["table_lines"] = _signature(node)
            yield chunk


def _chunk(chunk_id: str, module: str, text: str, facets: dict[str, str], line: int) -> Chunk:
    return {
        "chunk_id": chunk_id,
        "doc_id": module,
        "text": text,
        "facet_json": facets,
        "metadata": {"python": platform.python_version(), "line": line},
        "version": 1,
    }


def _definitions(node: ast.AST, prefix: str = "", function: str = "function") -> Iterator[tuple[Definition, str, str]]:
    """Each definition below a node with its qualified name (PEP 3155) and kind, in source order."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield child, prefix + child.name, "class"
            yield from _definitions(child, f"{prefix}{child.name}.", "method")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child, prefix + child.name, function
            yield from _definitions(child, f"{prefix}{child.name}.<locals>.")
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _definitions(child, prefix, function)


def _docstring(node: ast.Module | Definition) -> str | None:
    text = ast.get_docstring(node, clean=False)
    return text if text and not text.isspace() else None


def _signature(node: Definition) -> list[str]:
    stub = copy.copy(node)
    stub.body = [ast.Pass()]
    return ast.unparse(stub).strip().splitlines()[:-1]
