"""The two models: a client of the dense model, which vLLM serves, and the sparse model, which runs in this process."""
