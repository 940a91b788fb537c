"""One process that runs one stage: the batch loop, which uses Faust."""
