"""Escapes control sequences for terminals in text from records, stores and servers."""

import re

# Control characters (C0, DEL, C1: ECMA-48), the line and paragraph separators, what changes the direction of text
# (Unicode Standard Annex 9; CVE-2021-42574), and lone surrogates, which cannot be encoded.
INTERPRETED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, *, lines: bool = False) -> str:
    """The text with what a terminal interprets escaped as Python does, `\\x1b` for example.

    With `lines`, line feeds stay; otherwise the result is one line.
    """
    if lines:
        return "\n".join(map(printable, text.split("\n")))
    return INTERPRETED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_json(text: str) -> str:
    """An equal JSON document that is printable; its line feeds between values stay."""
    return "\n".join(INTERPRETED.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in text.split("\n"))
