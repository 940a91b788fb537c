"""Conditions on a chunk's fields."""

from pydantic import BaseModel


class Filter(BaseModel):
    """A placeholder."""
