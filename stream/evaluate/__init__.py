"""Measures the quality of search with judged queries: `stream eval`."""
