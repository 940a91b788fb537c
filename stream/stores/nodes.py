"""OpenSearch's nodes, one of which gets each request.

If a node refuses or loses the connection, another one gets the request, and all later ones for a while. That is safe,
because each request of ours may be processed twice. A node that hangs gets few requests, because the others have fewer
without an answer. A request that is not answered in time is not repeated here: that would multiply the load on a
cluster that is overloaded.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from opensearchpy.connection.http_async import AIOHttpConnection
from opensearchpy.connection_pool import ConnectionSelector
from opensearchpy.exceptions import ConnectionTimeout

COOLDOWN = 10.0  # seconds without requests after a failure; twice as many after each further one

Sign = Callable[[str, str, bytes | None], Awaitable[Mapping[str, str]]]  # method, URL and body; returns headers


class Node(AIOHttpConnection):  # type: ignore[misc]
    """The connections to one node, and the number of its requests without an answer.

    A request whose caller has stopped waiting counts for `COOLDOWN` seconds more: the node may hang.
    """

    def __init__(self, sign: Sign | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.unanswered = 0
        self.asked = 0.0  # when it got its last request
        self._sign = sign

    async def perform_request(
        self, method: str, url: str, params: Any = None, body: bytes | None = None, **options: Any
    ) -> Any:
        """As the library calls it. With `sign`, its headers are added."""
        loop = asyncio.get_running_loop()
        self.asked = loop.time()
        self.unanswered += 1
        hanging = False
        try:
            if self._sign:
                query = f"?{urlencode(params)}" if params else ""
                options["headers"] = await self._sign(method, f"{self.host}{self.url_prefix}{url}{query}", body)
            return await super().perform_request(method, url, params, body, **options)
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
