"""Whether the parts that a worker needs are there and answer."""
