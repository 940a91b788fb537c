"""If these fail, the package does not get the settings of the local profile, or another user can read its password."""

import stat
from pathlib import Path

import pytest

from stream.config import load
from stream.errors import ConfigurationError
from stream.local.profile import Profile


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    return Profile(tmp_path / "a home's name", kafka_port=20001)


def test_the_package_reads_its_settings_from_the_env_file(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUIRE_GPU", raising=False)
    monkeypatch.setenv("STREAM_ENV_FILE", str(profile.write_env_file()))
    settings = load()
    assert settings.kafka_servers == "127.0.0.1:20001"
    assert settings.splade_model == str(profile.home / "models" / "splade-tiny")
    assert settings.neo4j_password is not None
    assert settings.neo4j_password.get_secret_value() == profile.neo4j_password
    assert settings.require_gpu is False


def test_every_variable_is_a_setting_that_exists(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in profile.environment().items():
        monkeypatch.setenv(name, value)
    settings = load()
    for name in profile.environment():
        assert name.removeprefix("STREAM_").lower() in settings.model_fields_set, name


def test_the_password_is_made_once_and_is_its_owners_only(profile: Profile, tmp_path: Path) -> None:
    assert Profile(profile.home).neo4j_password == profile.neo4j_password
    assert Profile(tmp_path / "other").neo4j_password != profile.neo4j_password
    for path in (profile.home / "neo4j-password", profile.write_env_file()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_ports_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_LOCAL_OPENSEARCH_TRANSPORT_PORT", "20300")
    profile = Profile.from_environment()
    assert (profile.opensearch_transport_port, profile.kafka_port) == (20300, 19092)


@pytest.mark.parametrize("text", ["", "kafka", "80", "65536", "-1", "19092.0"])
def test_a_port_that_is_none_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_LOCAL_KAFKA_PORT", text)
    with pytest.raises(ConfigurationError, match="STREAM_LOCAL_KAFKA_PORT"):
        Profile.from_environment()


def test_a_home_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="choose another home"):
        Profile(tmp_path / "file" / "home").write_env_file()


def test_several_homes_can_share_artifacts(tmp_path: Path) -> None:
    assert Profile(tmp_path).artifacts == tmp_path.resolve() / "artifacts"
    assert Profile(tmp_path, artifacts=Path("/shared")).artifacts == Path("/shared")


def test_a_home_that_java_cannot_read_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(ConfigurationError, match="colon"):
        Profile(home=tmp_path / "a:b").make()
