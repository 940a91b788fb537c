"""If one of these fails, a new version of Faust or aiokafka has changed internal code that a worker depends on.

Read the change, compare it with `stream/worker/consumer.py`, `source.py`, `stream/kafka/record_batches.py` and
`oauth.py`, run all tests, and only then copy the new hash: `python tests/worker/test_upstream.py` prints the table.
"""

import hashlib
import inspect

import pytest
from aiokafka.conn import OAuthAuthenticator
from aiokafka.consumer.consumer import AIOKafkaConsumer
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.subscription_state import Assignment, Subscription, TopicPartitionState
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy
from faust.app.base import App
from faust.transport.consumer import Consumer
from faust.transport.drivers import aiokafka as driver

from stream.kafka import oauth, record_batches
from stream.worker import consumer

USED = [
    App._on_partitions_revoked,
    App._on_partitions_assigned,
    App.on_stop,
    Consumer.commit,
    Consumer._commit,
    Consumer._commit_tps,
    Consumer._filter_tps_with_pending_acks,
    Consumer._new_offset,
    Consumer._should_commit,
    Consumer._drain_messages,
    Consumer._wait_next_records,
    Consumer.getmany,
    Consumer.on_partitions_revoked,
    Consumer.on_partitions_assigned,
    Consumer.perform_seek,
    driver.Consumer._new_consumer_thread,
    driver.Consumer.verify_event_path,
    driver.AIOKafkaConsumerThread._create_worker_consumer,
    driver.AIOKafkaConsumerThread._ensure_consumer,
    driver.AIOKafkaConsumerThread._fetch_records,
    driver.AIOKafkaConsumerThread.seek_to_committed,
    AIOKafkaConsumer.__init__,
    Subscription,
    Assignment,
    TopicPartitionState,
    consumer._do_heartbeat,
    Fetcher._proc_fetch_request,
    record_batches.PartitionRecords,
    _MemoryRecordsPy,
    _DefaultRecordBatchPy,
    OAuthAuthenticator.__init__,
    oauth._step,
]
HASHES = {
    "faust.app.base.App._on_partitions_revoked": "d5c895bbe57dc73a",
    "faust.app.base.App._on_partitions_assigned": "de932b7927db85b3",
    "faust.app.base.App.on_stop": "bfe5a933defb2324",
    "faust.transport.consumer.Consumer.commit": "a354437baaa08bf8",
    "faust.transport.consumer.Consumer._commit": "99bb6b42fc095630",
    "faust.transport.consumer.Consumer._commit_tps": "a20e230b05ae8b15",
    "faust.transport.consumer.Consumer._filter_tps_with_pending_acks": "f6f9239774234e7e",
    "faust.transport.consumer.Consumer._new_offset": "1d2c7ea89a7ad4f1",
    "faust.transport.consumer.Consumer._should_commit": "5ce941793947ad42",
    "faust.transport.consumer.Consumer._drain_messages": "44a2500309e83c63",
    "faust.transport.consumer.Consumer._wait_next_records": "6218e1969a636b3f",
    "faust.transport.consumer.Consumer.getmany": "4b168d84882a70d6",
    "faust.transport.consumer.Consumer.on_partitions_revoked": "d04b7ae72c6fc206",
    "faust.transport.consumer.Consumer.on_partitions_assigned": "29ce96596f05a18c",
    "faust.transport.consumer.Consumer.perform_seek": "0e8c130ff4b0afd8",
    "faust.transport.drivers.aiokafka.Consumer._new_consumer_thread": "0870ec53dea75083",
    "faust.transport.drivers.aiokafka.Consumer.verify_event_path": "a17e8f0610e1abcb",
    "faust.transport.drivers.aiokafka.AIOKafkaConsumerThread._create_worker_consumer": "c2701bfc3e6f6cad",
    "faust.transport.drivers.aiokafka.AIOKafkaConsumerThread._ensure_consumer": "ff4a4c693b7ec63f",
    "faust.transport.drivers.aiokafka.AIOKafkaConsumerThread._fetch_records": "39a2c6c79fc1455a",
    "faust.transport.drivers.aiokafka.AIOKafkaConsumerThread.seek_to_committed": "775ab0adc4b052ab",
    "aiokafka.consumer.consumer.AIOKafkaConsumer.__init__": "01506f316191f7c9",
    "aiokafka.consumer.subscription_state.Subscription": "5e570aaff58e45fd",
    "aiokafka.consumer.subscription_state.Assignment": "ce6859542c70a3d4",
    "aiokafka.consumer.subscription_state.TopicPartitionState": "2b83334afadf6d98",
    "aiokafka.consumer.group_coordinator.GroupCoordinator._do_heartbeat": "dc1d6632aaa68e96",
    "aiokafka.consumer.fetcher.Fetcher._proc_fetch_request": "59bf948fff47eed5",
    "aiokafka.consumer.fetcher.PartitionRecords": "94aa0da0dbec8d1b",
    "aiokafka.record.memory_records._MemoryRecordsPy": "795a0314fbca30af",
    "aiokafka.record.default_records._DefaultRecordBatchPy": "f63fbb5a8a247d54",
    "aiokafka.conn.OAuthAuthenticator.__init__": "d556cdb7cc392f73",
    "aiokafka.conn.OAuthAuthenticator.step": "3a013ab61098033c",
}


def digest(used):
    return hashlib.sha256(inspect.getsource(used).encode()).hexdigest()[:16]


@pytest.mark.parametrize("used", USED, ids=lambda used: f"{used.__module__}.{used.__qualname__}")
def test_what_a_worker_uses_beyond_the_interface_is_as_it_was_read(used):
    assert digest(used) == HASHES.get(f"{used.__module__}.{used.__qualname__}")


if __name__ == "__main__":
    for used in USED:
        print(f'    "{used.__module__}.{used.__qualname__}": "{digest(used)}",')
