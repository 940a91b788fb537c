"""The two models: a client of the dense one, which vLLM serves, and the sparse one, which runs here."""
