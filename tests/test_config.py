"""If these fail, a worker runs with other settings than configured, or shows a secret."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from stream import config
from stream.cli import app
from stream.config import Settings
from stream.errors import ConfigurationError

CONFIGURATION = Path(__file__).parent.parent / "docs" / "configuration.md"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty settings file of this test; no other settings are set."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"STREAM_{name.upper()}", raising=False)
    monkeypatch.delenv("REQUIRE_GPU", raising=False)
    path = tmp_path / "settings.env"
    path.touch()
    monkeypatch.setenv("STREAM_ENV_FILE", str(path))
    return path


@pytest.mark.parametrize("name", ["STREAM_PARTITIONS", "stream_partitions"])
def test_command_line_before_environment_before_file_before_default(file, monkeypatch, name):
    assert config.load().partitions == Settings.model_fields["partitions"].default
    file.write_text(f"{name}=11\n")
    assert config.load().partitions == 11
    monkeypatch.setenv(name, "12")
    assert config.load().partitions == 12
    assert config.load(partitions="13").partitions == 13


@pytest.mark.parametrize("name", ["STREAM_REQUIRE_GPU", "REQUIRE_GPU"])
@pytest.mark.parametrize("other", ["STREAM_REQUIRE_GPU", "REQUIRE_GPU"])
def test_a_gpu_is_required_unless_somebody_says_otherwise(file, monkeypatch, name, other):
    assert config.load().require_gpu
    file.write_text(f"{name}=0\n")
    assert not config.load().require_gpu
    monkeypatch.setenv(other, "1")
    assert config.load().require_gpu
    assert not config.load(require_gpu="0").require_gpu


def test_what_the_file_says_of_others_is_none_of_our_business(file):
    file.write_text("PARTITIONS=11\nSTREAM_SOMETHING_ELSE=1\n")
    assert config.load().partitions == Settings.model_fields["partitions"].default


def test_a_secret_may_be_a_file_of_its_own(file, monkeypatch, tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "stream_neo4j_password").write_text('a/b "c" $d #e\n')
    monkeypatch.setenv("STREAM_SECRETS_DIR", str(tmp_path / "secrets"))
    assert config.load().neo4j_password.get_secret_value() == 'a/b "c" $d #e'
    file.write_text("STREAM_NEO4J_PASSWORD=other\n")
    assert config.load().neo4j_password.get_secret_value() == "other"


def test_a_folder_of_secrets_that_is_named_but_not_there_is_named(file, monkeypatch, tmp_path):
    monkeypatch.setenv("STREAM_SECRETS_DIR", str(tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match="STREAM_SECRETS_DIR"):
        config.load()


def test_a_file_that_is_named_but_not_there_is_named(file):
    file.unlink()
    with pytest.raises(ConfigurationError, match="STREAM_ENV_FILE"):
        config.load()


def test_an_unknown_name_on_the_command_line_is_named(file):
    with pytest.raises(ConfigurationError, match="partition;"):
        config.load(partition="1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("partitions", "0"),
        ("partitions", ""),
        ("topic", "with space"),
        ("topic", "x" * 201),
        ("instance", "a/b"),
        ("embed_dimensions", "4097"),
        ("neo4j_index", "a`b"),
        ("neo4j_index", "a b"),
        ("neo4j_index", "a\n"),
        ("neo4j_label", ""),
        ("neo4j_label", "a b"),
        ("neo4j_label", "A\n"),
        ("neo4j_label", "A`) DETACH DELETE n //"),
        ("neo4j_index", "a` IF NOT EXISTS FOR (n:X) ON (n.y) //"),
        ("opensearch_alias", "_all"),
        ("opensearch_alias", "a,b"),
        ("opensearch_alias", "*"),
        ("opensearch_alias", "-a"),
        ("opensearch_alias", "../_cluster"),
        ("opensearch_alias", "a/_settings"),
        ("opensearch_alias", "A"),
        ("opensearch_alias", "x" * 201),
        ("neo4j_database", "a`b"),
        ("neo4j_database", "neo4j; DROP DATABASE neo4j"),
        ("neo4j_database", "-a-"),
        ("neo4j_database", "ab"),
        ("opensearch_user", "a:b"),
        ("embed_api_key", "a key"),
        ("topic", "."),
        ("topic", ".."),
        ("topic", "a/b"),
        ("topic", "a\nb"),
        ("topic", "ä"),
        ("kafka_security_protocol", "TLS"),
        ("kafka_sasl_mechanism", "GSSAPI"),
        ("kafka_password", ""),
        ("log_level", "loud"),
        ("web_port", "65536"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(file, name, value):
    with pytest.raises(ConfigurationError, match=f"{name}: ") as error:
        config.load(**{name: value})
    assert "\n" not in str(error.value)


SASL = {"kafka_security_protocol": "SASL_SSL", "kafka_sasl_mechanism": "SCRAM-SHA-512", "kafka_user": "u"}
FULL = SASL | {"kafka_password": "hush", "kafka_ca_file": "ca", "kafka_cert_file": "c", "kafka_key_file": "k"}
CLIENT = {"kafka_oauth_url": "http://h:1", "kafka_oauth_client_id": "i", "kafka_oauth_client_secret": "hush"}
OAUTH = {"kafka_security_protocol": "SASL_SSL", "kafka_sasl_mechanism": "OAUTHBEARER"}


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (SASL, "kafka_password"),
        (FULL | {"kafka_security_protocol": "PLAINTEXT"}, "SASL_SSL"),
        (FULL | {"kafka_security_protocol": "SASL_PLAINTEXT"}, "kafka_ca_file"),
        (FULL | {"kafka_security_protocol": "SSL"}, "kafka_user"),
        ({"kafka_user": "u", "kafka_password": "hush"}, "kafka_security_protocol"),
        ({"kafka_ca_file": "ca"}, "kafka_security_protocol"),
        (CLIENT, "kafka_security_protocol"),
        (SASL | CLIENT | {"kafka_password": "hush"}, "OAUTHBEARER; it is SCRAM"),
        (OAUTH, "kafka_oauth_url, .* kafka_oauth_token_file"),
        (OAUTH | {"kafka_oauth_scope": "s", "kafka_oauth_token_file": "t"}, "only kafka_oauth_token_file"),
        (OAUTH | CLIENT | {"kafka_oauth_token_file": "t"}, "only kafka_oauth_token_file"),
        (OAUTH | CLIENT | {"kafka_user": "u"}, "no kafka_user"),
        (OAUTH | {"kafka_oauth_url": "http://h:1", "kafka_oauth_client_id": "i"}, "kafka_oauth_client_secret"),
        (OAUTH | CLIENT | {"kafka_oauth_ca_file": "ca"}, "https"),
        ({"kafka_security_protocol": "SSL", "kafka_cert_file": "c"}, "kafka_key_file"),
        ({"neo4j_ca_file": "ca"}, "bolt\\+s"),
        ({"neo4j_ca_file": "ca", "neo4j_uri": "bolt+ssc://h:1"}, "bolt\\+s"),
        ({"opensearch_ca_file": "ca"}, "https"),
        ({"embed_ca_file": "ca"}, "https"),
        ({"opensearch_ca_file": "ca", "opensearch_url": "https://a,http://b"}, "https"),
        ({"opensearch_user": "a", "opensearch_password": "hush", "opensearch_aws_region": "r"}, "aws_region"),
        ({"neo4j_cert_file": "c", "neo4j_key_file": "k"}, "bolt\\+s"),
        ({"opensearch_cert_file": "c", "opensearch_key_file": "k"}, "https"),
        ({"embed_cert_file": "c", "embed_key_file": "k", "embed_url": "https://a:1,http://b:1"}, "https"),
        ({"neo4j_key_file": "k", "neo4j_uri": "neo4j+s://h:1"}, "neo4j_cert_file"),
        ({"opensearch_cert_file": "c", "opensearch_url": "https://h:1"}, "opensearch_key_file"),
        ({"embed_cert_file": "c", "embed_url": "https://h:1"}, "embed_key_file"),
    ],
)
def test_security_that_would_not_protect_or_not_connect_is_refused_in_one_sentence(file, assignments, words):
    with pytest.raises(ConfigurationError, match=words) as error:
        config.load(**assignments)
    assert "\n" not in str(error.value)
    assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["kafka_password", "kafka_oauth_client_secret", "neo4j_password", "opensearch_password", "embed_api_key"],
)
def test_a_secret_is_never_printed(file, name):
    others = {
        "opensearch_password": {"opensearch_user": "admin"},
        "kafka_password": SASL,
        "kafka_oauth_client_secret": OAUTH | CLIENT,
    }.get(name, {})
    settings = config.load(**{**others, name: "hush"})
    for shown in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert "hush" not in shown
    assert getattr(settings, name).get_secret_value() == "hush"


@pytest.mark.parametrize(
    "address",
    [
        "http://user:hush@host:9200",
        "http://hush@host:9200",
        "http://user:hush/more@host:9200",  # a password without percent-encoding
        "http://user:12/hush@host:9200",
        "http://user:hu#hush@host:9200",
        "http://host:9200?key=hush",
        "http://host:hush",
        "http://ho\u2100hush:1",
        "http://[hush:1",
        "hush",
        "ftp://hush:1",
        "",
    ],
)
@pytest.mark.parametrize("name", ["neo4j_uri", "opensearch_url", "embed_url", "kafka_oauth_url"])
def test_an_address_that_holds_a_secret_or_is_none_is_refused_and_not_shown(file, name, address):
    """Errors about a server that is down contain its address."""
    address = address.replace("http:", "bolt:") if name == "neo4j_uri" else address
    with pytest.raises(ConfigurationError, match=f"{name}: must") as error:
        config.load(**{name: address})
    assert "hush" not in str(error.value)


@pytest.mark.parametrize("key", ["hush\n", "hush ", "hüsh"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(file, key):
    """A file may end with a line break; the HTTP client's own error would quote the key."""
    with pytest.raises(ConfigurationError, match="embed_api_key: must") as error:
        config.load(embed_api_key=key)
    assert key.strip() not in str(error.value)


@pytest.mark.parametrize(
    "wrong", [{"kafka_password": "hush"}, {"opensearch_password": "hush"}, {"embed_api_key": "hush "}]
)
def test_no_traceback_shows_a_secret_that_was_refused(file, wrong):
    with pytest.raises(ValidationError) as error:
        Settings(_env_file=None, **wrong)
    assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("hush", "Invalid JSON"),
        ("[1]", "dictionary"),
        ('{"number_of_shards": 3}', "number_of_shards: set opensearch_shards"),
        ('{"index": {"auto_expand_replicas": "0-2"}}', "auto_expand_replicas: set opensearch_replicas"),
        ('{"translog": {"durability": "async"}}', "translog.durability: a write must be on disk"),
        ('{"index.blocks.write": true}', "blocks.write: workers write"),
        ('{"replication.type": "SEGMENT"}', "replication.type: a refresh"),
        ('{"refresh_interval": -1}', "never find new chunks"),
    ],
)
def test_settings_of_an_index_that_would_lose_or_hide_chunks_are_refused(file, monkeypatch, given, words):
    monkeypatch.setenv("STREAM_OPENSEARCH_INDEX_SETTINGS", given)
    with pytest.raises(ConfigurationError, match=f"opensearch_index_settings: .*{words}"):
        config.load()


def test_settings_of_an_index_may_be_nested_and_have_their_prefix(file):
    given = '{"index": {"refresh_interval": "5s"}, "index.codec": "zstd", "translog": {"flush_threshold_size": "1gb"}}'
    expected = {"refresh_interval": "5s", "codec": "zstd", "translog.flush_threshold_size": "1gb"}
    assert config.load(opensearch_index_settings=given).opensearch_index_settings == expected


def test_whatever_sounds_secret_is_one():
    secret = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert secret == {name for name in Settings.model_fields if re.search("password|key$|token$|secret", name)}


def test_every_setting_has_a_sentence():
    assert not [name for name, field in Settings.model_fields.items() if not (field.description or "").endswith(".")]


def test_the_page_lists_the_settings_as_they_are(file, monkeypatch):
    monkeypatch.setenv("STREAM_PARTITIONS", "11")  # the page shows the defaults
    printed = CliRunner().invoke(app, ["settings", "--markdown"]).stdout
    assert CONFIGURATION.read_text() == printed


def test_the_default_model_is_pinned_and_no_other_is(monkeypatch):
    """Otherwise a push to the model's repository changes the terms of new chunks."""
    assert len(Settings(_env_file=None).splade_revision) == 40
    assert Settings(_env_file=None, splade_model="a/b").splade_revision == "main"
    assert Settings(_env_file=None, splade_revision="mine").splade_revision == "mine"
