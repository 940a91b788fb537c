"""Checks whether everything that a worker needs exists and answers."""
