"""If these fail, an index is made or searched with other settings than the configured ones."""

import pytest
from support import expanded

from stream.config import Settings
from stream.errors import ConfigurationError
from stream.health import doctor
from stream.operate.reindex import for_generation
from stream.stores import Stores
from stream.stores.base import Put
from stream.stores.opensearch import OpenSearchStore
from stream.vectors import unpack

pytestmark = pytest.mark.servers

OTHER = {"refresh_interval": "5s", "codec": "best_compression", "mapping.total_fields.limit": 500}


def configured(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"opensearch_shards": 2, "opensearch_replicas": 1, "opensearch_index_settings": OTHER}
    )


async def shown(store: OpenSearchStore, generation: int) -> dict[str, str]:
    """The settings of a generation's index, by name."""
    (found,) = (await store._call("GET", f"/{store.index(generation)}/_settings", flat_settings="true")).values()
    return {name.removeprefix("index."): value for name, value in found["settings"].items()}


async def test_a_new_index_has_the_configured_settings(settings: Settings) -> None:
    async with OpenSearchStore(configured(settings)) as store:
        await store.set_up()
        expected = {"number_of_shards": "2", "number_of_replicas": "1", "auto_expand_replicas": "false"}
        expected |= {name: str(value) for name, value in OTHER.items()}
        assert expected.items() <= (await shown(store, 1)).items()
        assert await store.unlike_settings() == []
        await store.drop(1)


@pytest.mark.parametrize("own", [configured, lambda settings: settings])
async def test_a_generation_is_filled_without_replicas_and_has_them_when_it_is_searched(stores, settings, own) -> None:
    mine = for_generation(own(settings), 2)
    async with OpenSearchStore(mine) as store:
        assert await store.claim()
        filling = await shown(store, 2)
        assert (filling["number_of_replicas"], filling["auto_expand_replicas"]) == ("0", "false")
        assert filling["refresh_interval"] == "-1"
        chunk = expanded("a")
        await store.write([Put(chunk, unpack(chunk["embedding_qwen"]))])
        await store.settle(2)
        assert await store.unlike_settings() == []
        settled = await shown(store, 2)
        assert settled.get("refresh_interval") == mine.opensearch_index_settings.get("refresh_interval")
        assert await store.count() == 1


async def test_settings_that_opensearch_refuses_are_named_with_its_reason(settings: Settings) -> None:
    wrong = settings.model_copy(update={"opensearch_index_settings": {"codec": "none of them"}})
    async with OpenSearchStore(wrong) as store:
        with pytest.raises(ConfigurationError, match=r"codec.*STREAM_OPENSEARCH_INDEX_SETTINGS"):
            await store.set_up()


async def test_doctor_says_what_a_reindex_would_change(stores: Stores, settings: Settings) -> None:
    def said(findings: list[doctor.Finding]) -> list[str]:
        return [one.said for one in findings if one.check == "OpenSearch" and one.warning]

    assert said([finding async for finding in doctor.stores(settings)]) == []
    (warning,) = said([finding async for finding in doctor.stores(configured(settings))])
    index = stores.opensearch.index(1)
    for words in (f"number_of_shards of {index} is 1, not 2", "codec", "`stream reindex start`"):
        assert words in warning


async def test_doctor_names_the_address_of_a_node_that_is_down(settings: Settings) -> None:
    closed = "http://127.0.0.1:1"
    several = settings.model_copy(update={"opensearch_url": f"{settings.opensearch_url},{closed}"})
    found = {one.check: one.ok async for one in doctor.stores(several)}
    assert found["OpenSearch"] and found[f"OpenSearch {settings.opensearch_url}"]
    assert not found[f"OpenSearch {closed}"]
