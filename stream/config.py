"""Every setting: a typed field with a default and a description.

The field `kafka_servers` is `STREAM_KAFKA_SERVERS` in the environment, a line of the same name in the file that
`STREAM_ENV_FILE` names (default `.env`), the content of a file `stream_kafka_servers` in the folder that
`STREAM_SECRETS_DIR` names, and `--set kafka_servers=…` on the command line. Precedence: command line, environment,
file, folder, default. Secrets are never printed.
"""

import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, Field, Json, JsonValue, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from stream import mapping
from stream.errors import ConfigurationError
from stream.wire import ValueFormat

REVISIONS = {"naver/splade-v3": "fdfeceb91d7b9de7985b38addd3ba9f53a59a355"}
StageName = Literal["embed", "expand", "index"]
SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
SearchMode = Literal["bm25", "splade", "dense", "lexical", "hybrid"]
STAGES: tuple[StageName, ...] = ("embed", "expand", "index")

SERVERS = r"^(\[[^\]]+\]|[^:,\s]+):\d{1,5}(,(\[[^\]]+\]|[^:,\s]+):\d{1,5})*$"
NAME = r"^[a-zA-Z0-9_-][a-zA-Z0-9._-]*$"  # what Kafka allows as a topic name; "." and ".." are not allowed
DATABASE = r"^[a-zA-Z][a-zA-Z0-9.-]{2,62}$"  # what Neo4j allows
LABEL = r"^[a-zA-Z][a-zA-Z0-9_]*$"  # what Cypher accepts without backticks
IDENTIFIER = r"^[a-z][a-z0-9_-]*$"  # safe as an OpenSearch index and, in backticks, as a Neo4j index


def _address(*schemes: str, several: bool = False) -> AfterValidator:
    def check_all(addresses: str) -> str:
        parts = [check(address.strip()) for address in addresses.split(",")]
        if len(set(parts)) < len(parts):
            raise ValueError("must not name an address twice")
        return ",".join(parts)

    def check(address: str) -> str:
        if "@" in address or "?" in address or "#" in address:
            raise ValueError(
                "must not contain a user, password or query, because addresses are logged; set secrets separately"
            )
        try:
            parts = urlsplit(address)
            fits = parts.scheme in schemes and parts.hostname and parts.port != 0
        except ValueError:  # the error's own message quotes the address
            fits = False
        if not fits:
            raise ValueError(f"must be {schemes[0]}://host:port")
        return address.rstrip("/")

    return AfterValidator(check_all if several else check)


def _fits_a_header(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]*", secret.get_secret_value()):
        raise ValueError("must be ASCII without spaces or line breaks")  # or the HTTP client's error quotes the secret
    return secret


HttpAddress = Annotated[str, _address("http", "https")]
HttpAddresses = Annotated[str, _address("http", "https", several=True)]
BoltAddress = Annotated[str, _address("bolt", "bolt+s", "bolt+ssc", "neo4j", "neo4j+s", "neo4j+ssc")]


UNTOUCHABLE = {  # settings of an index, or the beginning of their names, and why they cannot be set
    "number_of_shards": "set opensearch_shards",
    "number_of_replicas": "set opensearch_replicas",
    "auto_expand_replicas": "set opensearch_replicas",
    "translog.durability": "a write must be on disk before its offset is committed",
    "replication": "a refresh must show all earlier writes to searches",
    "routing_partition_size": "documents have no routing of their own",
    "max_result_window": "a comparison of the stores reads 10,000 documents at once",
    "blocks": "workers write to the index",
}


def _index_settings(given: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The settings by their full names without `index.`."""
    flat = {name.removeprefix("index."): value for name, value in _flat(given)}
    for name, value in flat.items():
        for untouchable, reason in UNTOUCHABLE.items():
            if f"{name}.".startswith(f"{untouchable}."):
                raise ValueError(f"must not have {name}: {reason}")
        if name == "refresh_interval" and str(value) == "-1":
            raise ValueError("must not have a refresh_interval of -1: searches would never find new chunks")
    return flat


def _flat(given: dict[str, JsonValue]) -> Iterator[tuple[str, JsonValue]]:
    for name, value in given.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", each) for inner, each in _flat(value))
        else:
            yield name, value


class Settings(BaseSettings):
    """Settings of one process. Unknown names are an error only on the command line."""

    model_config = SettingsConfigDict(env_prefix="STREAM_", extra="ignore", frozen=True, hide_input_in_errors=True)

    # Kafka
    kafka_servers: str = Field(
        "localhost:9092", pattern=SERVERS, description="Bootstrap servers, host:port, separated by commas."
    )
    kafka_security_protocol: SecurityProtocol = Field(
        "PLAINTEXT", description="Kafka's security protocol: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."
    )
    kafka_sasl_mechanism: SaslMechanism | None = Field(
        None, description="SASL mechanism: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER."
    )
    kafka_user: str | None = Field(None, min_length=1, description="User for PLAIN and SCRAM.")
    kafka_password: SecretStr | None = Field(None, min_length=1, description="Password for PLAIN and SCRAM.")
    kafka_oauth_url: HttpAddress | None = Field(
        None, description="Token endpoint for OAUTHBEARER, with the OAuth 2 client credentials grant."
    )
    kafka_oauth_client_id: str | None = Field(None, min_length=1, description="Client id at the token endpoint.")
    kafka_oauth_client_secret: SecretStr | None = Field(
        None, min_length=1, description="Client secret at the token endpoint."
    )
    kafka_oauth_scope: str | None = Field(None, min_length=1, description="Scope of the tokens, if one is needed.")
    kafka_oauth_ca_file: Path | None = Field(
        None, description="CA bundle (PEM) that verifies the token endpoint's certificate; needs https."
    )
    kafka_oauth_token_file: Path | None = Field(
        None, description="File with a token for OAUTHBEARER, which another program renews; in place of the endpoint."
    )
    kafka_ca_file: Path | None = Field(
        None, description="CA bundle (PEM) that verifies Kafka's certificate; default: the system's."
    )
    kafka_cert_file: Path | None = Field(None, description="Client certificate (PEM) for Kafka.")
    kafka_key_file: Path | None = Field(
        None, description="Private key of the client certificate (PEM, without a passphrase)."
    )
    kafka_rack: str | None = Field(
        None,
        min_length=1,
        description="A worker's rack (`client.rack`): it reads from a replica in this rack, if the brokers allow it.",
    )
    topic: str = Field(
        "chunks",
        pattern=NAME,
        max_length=200,
        description="The topic of chunks; the names of all other topics start with it.",
    )
    partitions: int = Field(6, ge=1, description="Partitions of each topic, for `topics create`.")
    replication_factor: int | None = Field(
        None,
        ge=1,
        description="Replicas of each topic, for `topics create`; default: 3, or the number of brokers if lower.",
    )
    dlq_retention_days: float = Field(30, gt=0, description="Days for which dead letters are kept.")
    dlq_max_attempts: int = Field(
        5, ge=1, description="A dead letter is not redriven after it was rejected this many times."
    )
    max_message_bytes: int = Field(
        32 * 2**20,
        ge=2**20,
        description="The largest record that the topics accept, in bytes; the broker must allow it too.",
    )
    max_record_bytes: int = Field(
        2**20,
        ge=1024,
        description="A chunk whose record is larger than this many bytes becomes a dead letter.",
    )
    value_format: ValueFormat = Field(
        "auto",
        description="Format of producers' values: `json`, `confluent` (JSON in Confluent's wire format), `auto`: both.",
    )
    field_mapping: Annotated[str, AfterValidator(mapping.checked)] = Field(
        "", description="A JMESPath expression that makes the chunk of a producer's record; empty: the record is one."
    )

    # The batch loop
    batch_size: int = Field(256, ge=1, le=10_000, description="Maximum records of one batch.")
    batch_bytes: int = Field(
        16 * 2**20, ge=1, description="Maximum bytes of one batch (a single record may exceed it)."
    )
    in_flight: int = Field(
        3, ge=1, description="Maximum batches in progress at once in a stage that publishes to Kafka."
    )
    outage_bound: float = Field(
        300,
        gt=0,
        description="Seconds to retry a batch while an external system is down; then the worker exits with code 75.",
    )
    drain_timeout: float = Field(
        30,
        gt=0,
        description="Seconds to finish batches in flight after SIGTERM or a revocation, and requests after SIGTERM.",
    )
    rate_limit: float | None = Field(
        None, gt=0, description="Maximum records a second that a worker takes, on average; unset: no limit."
    )
    reject_share: float = Field(
        0.9,
        gt=0,
        le=1,
        description="A worker ends with code 65 before it rejects more than this share of `reject_count` consecutive "
        "records of a partition; 1: it never does.",
    )
    reject_count: int = Field(
        1000, ge=1, le=100_000, description="The consecutive records of a partition that `reject_share` is a share of."
    )
    commit_interval: float = Field(0.5, gt=0, description="Seconds between commits of acknowledged offsets.")
    session_timeout: float = Field(
        30, gt=0, description="Seconds without a heartbeat after which Kafka removes a worker from its group."
    )
    instance: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-0",
        pattern=NAME,
        examples=["the host name, then -0"],
        description="This worker's name as a static group member: the same after a restart, unique in the stage.",
    )

    # The dense model
    embed_url: HttpAddresses = Field(
        "http://localhost:8000",
        description="The vLLM server (its OpenAI-compatible API), or several replicas of it, separated by commas.",
    )
    embed_model: str = Field("Qwen/Qwen3-Embedding-8B", description="The model that the server must serve.")
    embed_revision: str = Field("main", description="The model's revision; the provenance of each vector names it.")
    embed_dimensions: int = Field(4096, ge=1, le=4096, description="Numbers in a vector; Neo4j indexes at most 4096.")
    embed_api_key: Annotated[SecretStr, AfterValidator(_fits_a_header)] | None = Field(
        None, description="Bearer token for the vLLM server."
    )
    embed_ca_file: Path | None = Field(
        None, description="CA bundle (PEM) that verifies the vLLM server's certificate; needs https."
    )
    embed_cert_file: Path | None = Field(None, description="Client certificate (PEM) for the vLLM server; needs https.")
    embed_key_file: Path | None = Field(
        None, description="Private key of the client certificate (PEM, without a passphrase)."
    )
    embed_timeout: float = Field(120, gt=0, description="Request timeout of the vLLM server, in seconds.")
    embed_request_tokens: int = Field(
        2**18,
        ge=1,
        description="Maximum tokens of one request, estimated as bytes / 3; a longer text is sent alone.",
    )
    embed_reuse: bool = Field(
        True, description="Reuse the vector of an unchanged text, if Neo4j has it, instead of embedding the text again."
    )
    embed_long_texts: Literal["reject", "truncate"] = Field(
        "reject",
        description="For a text of more tokens than the model reads: `reject` makes a dead letter, `truncate` cuts it.",
    )
    embed_instruction: str = Field(
        "Given a web search query, retrieve relevant passages that answer the query",
        description="Instruction that is sent with each query (Qwen3-Embedding); empty: the query alone.",
    )

    # The sparse model
    splade_model: str = Field("naver/splade-v3", description="A masked language model of the SPLADE family.")
    splade_revision: str = Field(
        default_factory=lambda settings: REVISIONS.get(settings["splade_model"], "main"),
        examples=["a commit for splade-v3, else main"],
        description="The model's revision.",
    )
    splade_threshold: float = Field(0.05, ge=0, description="Weights up to this value are dropped, before normalising.")
    splade_top_k: int = Field(400, ge=1, le=1000, description="Maximum terms of a chunk; the heaviest are kept.")
    splade_normalise: bool = Field(True, description="L2-normalise the kept weights; `splade_norm` keeps their norm.")
    splade_max_tokens: int = Field(512, ge=8, description="Maximum tokens of one window.")
    splade_long_texts: Literal["windows", "truncate"] = Field(
        "windows",
        description="For a longer text: `windows` pools the terms of several windows, `truncate` uses only the first.",
    )
    splade_query_terms: int = Field(
        32, ge=1, le=500, description="Maximum terms of a query that are searched for; the heaviest are kept."
    )
    splade_token_budget: int = Field(
        65_536, ge=512, description="Maximum tokens on the GPU at once; halved for a while after it ran out of memory."
    )

    # The stores
    neo4j_uri: BoltAddress = Field("bolt://localhost:7687", description="Neo4j's Bolt address.")
    neo4j_user: str = Field("neo4j", description="Neo4j's user.")
    neo4j_password: SecretStr | None = Field(None, description="Neo4j's password; unset if its authentication is off.")
    neo4j_ca_file: Path | None = Field(
        None, description="CA bundle (PEM) that verifies Neo4j's certificate; needs bolt+s or neo4j+s."
    )
    neo4j_cert_file: Path | None = Field(
        None, description="Client certificate (PEM) for Neo4j; needs bolt+s or neo4j+s."
    )
    neo4j_key_file: Path | None = Field(
        None, description="Private key of the client certificate (PEM, without a passphrase)."
    )
    neo4j_database: str = Field("neo4j", pattern=DATABASE, description="Neo4j's database.")
    neo4j_index: str = Field("chunk_qwen_idx", pattern=IDENTIFIER, description="Neo4j's vector index.")
    neo4j_hnsw_m: int | None = Field(
        None,
        ge=1,
        le=512,
        description="Neighbours of a node in a new vector index (HNSW's M); unset: Neo4j's default, 16.",
    )
    neo4j_hnsw_ef_construction: int | None = Field(
        None,
        ge=1,
        le=3200,
        description="Candidates for the neighbours of a node in a new vector index; unset: Neo4j's default, 100.",
    )
    neo4j_quantization: bool | None = Field(
        None, description="Whether a new vector index is quantised; unset: Neo4j's default, yes."
    )
    neo4j_label: str = Field(
        "Chunk",
        pattern=LABEL,
        max_length=64,
        description="The label of chunks in Neo4j; the labels of deleted chunks and live generations derive from it.",
    )
    opensearch_url: HttpAddresses = Field(
        "http://localhost:9200",
        description="OpenSearch's address, or those of several nodes of the cluster, separated by commas.",
    )
    opensearch_user: str | None = Field(
        None, pattern=r"^[^:]+$", description="OpenSearch's user; unset if its security is off."
    )
    opensearch_password: SecretStr | None = Field(None, description="OpenSearch's password.")
    opensearch_ca_file: Path | None = Field(
        None, description="CA bundle (PEM) that verifies OpenSearch's certificate; needs https."
    )
    opensearch_cert_file: Path | None = Field(None, description="Client certificate (PEM) for OpenSearch; needs https.")
    opensearch_key_file: Path | None = Field(
        None, description="Private key of the client certificate (PEM, without a passphrase)."
    )
    opensearch_aws_region: str | None = Field(
        None,
        pattern=r"^[a-z0-9-]+$",
        description="Region of an Amazon OpenSearch Service domain; requests are signed with AWS credentials.",
    )
    opensearch_alias: str = Field(
        "chunks",
        pattern=IDENTIFIER,
        max_length=200,
        description="OpenSearch's alias; its first index has the same name with the suffix -1.",
    )
    opensearch_shards: int = Field(1, ge=1, le=1024, description="Primary shards of each new index in OpenSearch.")
    opensearch_replicas: int | None = Field(
        None, ge=0, description="Replicas of each shard; unset: one, or none if the cluster has a single node."
    )
    opensearch_index_settings: Annotated[Json[dict[str, JsonValue]], AfterValidator(_index_settings)] = Field(
        "{}",
        validate_default=True,
        description="Other settings of each new index, as a JSON object of OpenSearch's names and values.",
    )
    flow: str = Field(
        "",
        pattern=r"^[a-z0-9]*$",
        description="Name of a separate flow for another model: it has its own topics, groups and live generation.",
    )
    generation: int | None = Field(
        None, ge=1, description="The generation of both stores to read and write; unset: the live one."
    )
    store_timeout: float = Field(60, gt=0, description="Timeout of one call to a store, in seconds.")

    # The service
    serve_host: str = Field(
        "127.0.0.1", description="Address at which `stream serve` listens; any other than the default needs keys."
    )
    serve_port: int = Field(8080, ge=0, le=65535, description="Port of `stream serve`.")
    serve_keys: Path | None = Field(
        None,
        description="File of access keys, which `stream keys new` makes; unset: everyone on this machine may search.",
    )
    serve_in_flight: int = Field(
        64, ge=1, description="Maximum requests at once; the service answers the others with status 429."
    )
    serve_body_bytes: int = Field(4 * 2**20, ge=1024, description="Maximum bytes of a request to the service.")

    # The process
    require_gpu: bool = Field(
        True,
        validation_alias=AliasChoices("require_gpu", "STREAM_REQUIRE_GPU", "REQUIRE_GPU"),
        description="Refuse to start without a GPU (exit code 99). 0: development profile, models run on the CPU.",
    )
    web_host: str = Field("127.0.0.1", description="Address at which a worker serves /metrics, /healthz and /readyz.")
    web_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of a worker's web server; default 9101 for embed, 9102 for expand, 9103 for index.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that a worker or the service logs."
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="Format of a log line: `console` for people, `json` for machines."
    )
    traces: bool = Field(
        False,
        description="Export the traces of a worker or the service by OTLP over HTTP, to `OTEL_EXPORTER_OTLP_ENDPOINT`.",
    )

    @model_validator(mode="after")
    def _user_and_password(self) -> Self:
        if (self.opensearch_user is None) != (self.opensearch_password is None):
            raise ValueError("opensearch_user and opensearch_password must be set together")
        if self.opensearch_user and self.opensearch_aws_region:
            raise ValueError("opensearch_user and opensearch_aws_region exclude each other: a request has one login")
        return self

    @model_validator(mode="after")
    def _complete_login(self) -> Self:
        protocol, mechanism = self.kafka_security_protocol, self.kafka_sasl_mechanism
        password = (self.kafka_user, self.kafka_password)
        client = (self.kafka_oauth_url, self.kafka_oauth_client_id, self.kafka_oauth_client_secret)
        endpoint, file = (*client, self.kafka_oauth_scope, self.kafka_oauth_ca_file), self.kafka_oauth_token_file
        if not protocol.startswith("SASL_"):
            if any((mechanism, *password, *endpoint, file)):
                raise ValueError(
                    "kafka_sasl_mechanism, kafka_user, kafka_password and kafka_oauth_… need the "
                    f"kafka_security_protocol SASL_SSL or SASL_PLAINTEXT; it is {protocol}"
                )
        elif mechanism == "OAUTHBEARER":
            if any(password) or (any(endpoint) if file else None in client):
                raise ValueError(
                    "OAUTHBEARER needs kafka_oauth_url, kafka_oauth_client_id and kafka_oauth_client_secret, or only "
                    "kafka_oauth_token_file, and no kafka_user and kafka_password"
                )
        elif None in (mechanism, *password):
            raise ValueError(f"{protocol} needs kafka_sasl_mechanism, kafka_user and kafka_password")
        elif any((*endpoint, file)):
            raise ValueError(f"kafka_oauth_… need the kafka_sasl_mechanism OAUTHBEARER; it is {mechanism}")
        return self

    @model_validator(mode="after")
    def _complete_security(self) -> Self:
        protocol = self.kafka_security_protocol
        if self.kafka_oauth_ca_file and not (self.kafka_oauth_url or "").startswith("https:"):
            raise ValueError("kafka_oauth_ca_file needs a kafka_oauth_url of https://")
        encrypted = {  # what the files of a server need, and whether it is so
            "kafka": ("the kafka_security_protocol SSL or SASL_SSL", protocol.endswith("SSL")),
            "neo4j": ("a neo4j_uri of bolt+s:// or neo4j+s://", self.neo4j_uri.startswith(("bolt+s:", "neo4j+s:"))),
            "opensearch": (
                "an opensearch_url of https://",
                all(url.startswith("https:") for url in self.opensearch_urls),
            ),
            "embed": ("an embed_url of https://", all(url.startswith("https:") for url in self.embed_urls)),
        }
        for server, (needed, met) in encrypted.items():
            ca, cert, key = self.tls_files(server)
            if (cert is None) != (key is None):
                raise ValueError(f"{server}_cert_file and {server}_key_file must be set together")
            if (ca or cert) and not met:
                raise ValueError(f"{server}_ca_file, {server}_cert_file and {server}_key_file need {needed}")
        return self

    def tls_files(self, server: str) -> tuple[Path | None, Path | None, Path | None]:
        """The CA bundle, the client certificate and its key for kafka, neo4j, opensearch or embed."""
        ca, cert, key = (getattr(self, f"{server}_{kind}_file") for kind in ("ca", "cert", "key"))
        return ca, cert, key

    @property
    def embed_urls(self) -> list[str]:
        """The addresses of `embed_url`."""
        return self.embed_url.split(",")

    @property
    def opensearch_urls(self) -> list[str]:
        """The addresses of `opensearch_url`."""
        return self.opensearch_url.split(",")

    @property
    def max_letter_bytes(self) -> int:
        """The largest dead letter: the original record and room for its headers."""
        return self.max_message_bytes + 2**16


PLAIN = {"value_format": "auto", "field_mapping": ""}  # for a topic to which this package itself publishes chunks


def load(**overrides: str) -> Settings:
    """Reads the settings; raises `ConfigurationError` with one sentence for each invalid value."""
    unknown = set(overrides) - set(Settings.model_fields)
    if unknown:
        raise ConfigurationError(
            f"there is no setting called {', '.join(sorted(unknown))}; `stream settings` lists them"
        )
    file = os.environ.get("STREAM_ENV_FILE")
    if file and not Path(file).exists():
        raise ConfigurationError(f"STREAM_ENV_FILE names {file}, which does not exist")
    secrets = os.environ.get("STREAM_SECRETS_DIR")
    if secrets and not Path(secrets).is_dir():
        raise ConfigurationError(f"STREAM_SECRETS_DIR names {secrets}, which is not a folder")
    try:
        return Settings(_env_file=file or ".env", _secrets_dir=secrets or None, **overrides)  # type: ignore[call-arg, arg-type]
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'combination'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors(include_input=False)
            if e["type"] != "default_factory_not_called"  # only because another setting is invalid
        )
        raise ConfigurationError(f"invalid settings: {wrong}") from None


class _Only(Settings):
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def only(variables: Mapping[str, str]) -> Settings:
    """Settings from these variables only: neither the environment nor a file is read."""
    return _Only(**{name.removeprefix("STREAM_").lower(): value for name, value in variables.items()})  # type: ignore[arg-type]
