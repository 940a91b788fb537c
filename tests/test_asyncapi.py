"""If these fail, `schemas/asyncapi.yaml` describes another flow than the one that runs."""

from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support import record

from stream import __version__
from stream.config import STAGES, Settings
from stream.contracts import SCHEMAS, problem
from stream.kafka import topics
from stream.records import Decoder, Tombstone, sha256
from stream.vectors import unpack

DOCUMENT = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text())
CHANNELS = DOCUMENT["channels"].values()
MESSAGES = DOCUMENT["components"]["messages"]
DEFAULTS = Settings.model_construct()


def refs(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from [node["$ref"]] if "$ref" in node else []
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from refs(child)


def resolve(ref: str) -> Any:
    """The part of the document that a `$ref` within it names."""
    node = DOCUMENT
    for step in ref.removeprefix("#/").split("/"):
        node = node[step]
    return node


def examples(*messages: str) -> list[Any]:
    return [
        pytest.param(message, example, id=f"{message}: {example['name']}")
        for message in messages
        for example in MESSAGES[message]["examples"]
    ]


@pytest.mark.parametrize("ref", sorted(set(refs(DOCUMENT))))
def test_whatever_is_referred_to_is_there(ref):
    assert resolve(ref) if ref.startswith("#/") else (SCHEMAS / ref).is_file()


def test_its_version_is_the_package_s():
    assert DOCUMENT["info"]["version"] == __version__


def test_the_channels_are_the_topics_and_kept_as_they_are():
    policies = {
        channel["address"]: resolve(channel["bindings"]["$ref"])["kafka"]["topicConfiguration"]["cleanup.policy"]
        for channel in CHANNELS
    }
    made = topics.definitions(DEFAULTS, replicas=1)
    assert policies == {topic.name: topic.topic_configs["cleanup.policy"].split(",") for topic in made}


def test_each_stage_receives_and_sends_what_the_code_says():
    described = {
        (name, operation["action"], resolve(operation["channel"]["$ref"])["address"])
        for name, operation in DOCUMENT["operations"].items()
    }
    wanted = set()
    for stage in STAGES:
        wanted |= {
            (f"{stage}Receives", "receive", topics.source(DEFAULTS, stage)),
            (f"{stage}Rejects", "send", topics.dead_letters(DEFAULTS, stage)),
        }
        if target := topics.target(DEFAULTS, stage):
            wanted.add((f"{stage}Sends", "send", target))
    assert described == wanted


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_receives_as_its_group(stage):
    group = DOCUMENT["operations"][f"{stage}Receives"]["bindings"]["kafka"]["groupId"]
    assert group["const"] == topics.group(DEFAULTS, stage)


@pytest.mark.parametrize(("message", "example"), examples("chunk", "embedded", "expanded"))
def test_an_example_keeps_the_contract_of_its_message(message, example):
    assert problem(example["payload"], Path(MESSAGES[message]["payload"]["schema"]["$ref"]).stem) is None


@pytest.mark.parametrize(("message", "example"), examples("embedded", "expanded"))
def test_an_example_says_the_truth_about_its_own_text_and_vector(message, example):
    chunk = example["payload"]
    assert chunk["text_sha256"] == sha256(chunk["text"])
    vector = unpack(b64decode(example["headers"]["embedding_qwen"]))
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert len(vector) == chunk["embedding_provenance"]["parameters"]["dimensions"]


@pytest.mark.parametrize(("message", "example"), examples("tombstone"))
def test_an_example_of_a_tombstone_is_one(message, example):
    headers = [(name, value.encode()) for name, value in example.get("headers", {}).items()]
    tombstone = Decoder.of("chunk", DEFAULTS)(record(example["payload"], headers=headers, timestamp=1234))
    assert tombstone == Tombstone("c1", int(example.get("headers", {}).get("version", 1234)))


@pytest.mark.parametrize(("message", "example"), examples("deadLetter", "redriven"))
def test_an_example_of_a_dead_letter_or_marker_has_the_headers_of_the_contract(message, example):
    assert problem(example["headers"], Path(MESSAGES[message]["headers"]["schema"]["$ref"]).stem) is None
