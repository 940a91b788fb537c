"""The port of a worker's web server."""

from stream.config import Settings, StageName

WEB_PORTS: dict[StageName, int] = {"embed": 9101, "expand": 9102, "index": 9103}


def web_port(stage: StageName, settings: Settings) -> int:
    """The configured port, else the stage's own."""
    return WEB_PORTS[stage] if settings.web_port is None else settings.web_port
