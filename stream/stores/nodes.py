"""OpenSearch's nodes, one of which gets each request.

If a node refuses or loses the connection, another one gets the request, and all later ones for a while. That is safe,
because each request of ours may be processed twice. A node that hangs gets few requests, because the others have fewer
without an answer. A request that is not answered in time is not repeated here: that would multiply the load on a
cluster that is overloaded.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from opensearchpy.connection.http_async import AIOHttpConnection
from opensearchpy.connection_pool import ConnectionSelector
from opensearchpy.exceptions import ConnectionTimeout

COOLDOWN = 10.0  # seconds without requests after a failure; twice as many after each further one


class Node(AIOHttpConnection):  # type: ignore[misc]
    """The connections to one node, and the number of its requests without an answer.

    A request whose caller has stopped waiting counts for `COOLDOWN` seconds more: the node may hang.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.unanswered = 0
        self.asked = 0.0  # when it got its last request

    async def perform_request(self, *request: Any, **options: Any) -> Any:
        """As the library calls it."""
        loop = asyncio.get_running_loop()
        self.asked = loop.time()
        self.unanswered += 1
        hanging = False
        try:
            return await super().perform_request(*request, **options)
        except (asyncio.CancelledError, ConnectionTimeout):
            hanging = True
            raise
        finally:
            if hanging:
                loop.call_later(COOLDOWN, self._answered)
            else:
                self._answered()

    def _answered(self) -> None:
        self.unanswered -= 1


class FewestUnanswered(ConnectionSelector):  # type: ignore[misc]
    """Chooses the node with the fewest requests without an answer; of several, the one that was asked longest ago."""

    def select(self, connections: Sequence[Node]) -> Node:
        """One of the nodes that have not failed."""
        return min(connections, key=lambda node: (node.unanswered, node.asked))
