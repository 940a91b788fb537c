"""If this fails, the writer of a chunk can inject Cypher."""

import ast
from pathlib import Path

import stream
from stream.stores import neo4j

MODULE = Path(neo4j.__file__)


def statements() -> list[ast.expr]:
    """The first argument of every call that sends Cypher."""
    tree = ast.parse(MODULE.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [call.args[0] for call in calls if call.func.attr in ("_run", "_sweep", "_apply")]


def test_cypher_is_made_of_constants_and_of_names_that_are_checked():
    parts = [part for statement in statements() for part in ast.walk(statement)]
    formatted = {ast.unparse(part.value) for part in parts if isinstance(part, ast.FormattedValue)}
    names = {part.id for part in parts if isinstance(part, ast.Name)}
    assert len(statements()) > 5
    # Checked names, and a number.
    schema = {"index", "vector", "version", "provenance", "count_index", "origin_index"}
    schema |= {"filterable", "filterable_index", "facets_index"}
    assert formatted == {"name"} | {f"schema.{each}" for each in schema}  # `name` is the checked label
    constants = {name for name in names if name.isupper()}
    assert names - constants == {"schema", "name", "statement"}
    assert all(isinstance(getattr(neo4j, name), str) for name in constants)
    assert not any(isinstance(part, ast.BinOp | ast.Call) for part in parts)


def test_only_the_store_of_neo4j_sends_cypher():
    others = [path for path in Path(stream.__file__).parent.rglob("*.py") if path != MODULE]
    assert [p.name for p in others if "execute_query" in p.read_text() or "neo4j._run" in p.read_text()] == []
