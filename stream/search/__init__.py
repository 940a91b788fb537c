"""Search over both stores: `Searcher` answers a `Request` with an `Answer`."""
