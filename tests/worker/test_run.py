"""If these fail, settings that are each allowed contradict each other in a running worker."""

import pytest

from stream.config import Settings
from stream.worker.source import _app


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"outage_bound": 7200},
        {"rate_limit": 0.01},
        {"drain_timeout": 600},
        {"session_timeout": 600},
        {"drain_timeout": 600, "session_timeout": 600, "outage_bound": 86_400},
    ],
)
def test_what_a_worker_may_wait_for_does_not_cost_it_its_place_in_the_group(told):
    settings = Settings(_env_file=None, instance="a", **told)
    conf = _app("embed", settings, None).conf
    held = 2 * settings.outage_bound + settings.batch_size / (settings.rate_limit or 1e9)
    assert conf.broker_max_poll_interval > held  # no fetch while a batch waits
    assert conf.broker_rebalance_timeout > settings.drain_timeout
    assert conf.broker_request_timeout > conf.broker_rebalance_timeout  # a request to join waits for all others
    assert conf.broker_request_timeout > conf.broker_session_timeout  # else Faust does not start
    assert conf.broker_heartbeat_interval < conf.broker_session_timeout / 3
