"""Turns text chunks into searchable knowledge in seconds and loses none of them."""

__version__ = "0.1.0"
