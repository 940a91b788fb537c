"""One process that runs one stage: the batch loop, and Faust beneath it."""
