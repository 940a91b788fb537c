"""Search as a service: HTTP, a page, and tools for language models."""
