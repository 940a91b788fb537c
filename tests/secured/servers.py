"""OpenSearch with its security plugin, whose users and roles a test may change, and Neo4j with its own TLS."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import yaml
from conftest import ROOT
from guards import certificate
from neo4j import GraphDatabase
from neo4j.exceptions import DriverError, Neo4jError
from ports import free_ports

from stream import tls
from stream.local import java, neo4j, opensearch
from stream.local.profile import HOST, Profile
from stream.local.supervisor import down, up

VERSION = "2.19.1"  # the newest one whose security plugin is a zip on Maven Central
PASSWORD = "a long enough Kennwort 7"
PLUGIN = """<artifactItem>
  <groupId>org.opensearch.plugin</groupId><artifactId>opensearch-security</artifactId><version>${project.version}.0</version>
  <type>zip</type><outputDirectory>${home}/plugins/opensearch-security</outputDirectory>
</artifactItem>"""
AUTHENTICATION = {  # the common name of a client's certificate is the user; a client without one gives a password
    name: {
        "http_enabled": True,
        "order": order,
        "http_authenticator": {"type": name, "challenge": challenge, "config": {"username_attribute": "cn"}},
        "authentication_backend": {"type": backend},
    }
    for order, (name, challenge, backend) in enumerate([("clientcert", False, "noop"), ("basic", True, "intern")])
}


@dataclass(frozen=True)
class Node:
    """The node, its certificate, and clients' certificates with their keys, by name."""

    url: str
    certificates: dict[str, tuple[Path, Path]]

    def administer(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """A request of the plugin's admin, who may do everything."""
        context = tls.context(self.certificates["node"][0], *self.certificates["admin"])
        with httpx.Client(base_url=self.url, verify=context, trust_env=False) as client:
            return client.request(method, path, json=body).raise_for_status()

    def security(self, method: str, what: str, body: Any = None) -> None:
        """Changes users and roles (https://docs.opensearch.org/2.19/security/access-control/api/)."""
        self.administer(method, f"/_plugins/_security/api/{what}", body)

    def ready(self) -> bool:
        """Whether the plugin has read its configuration."""
        with suppress(httpx.HTTPError):
            self.security("GET", "roles")
            return True
        return False


@contextmanager
def running(home: Path, client_certificates: str = "OPTIONAL") -> Iterator[Node]:
    """The node with an empty data folder below `home`; the first time Maven downloads it.

    `client_certificates` is OPTIONAL or REQUIRE.
    """
    certificates = {name: certificate(home, name) for name in ("node", "admin", "client", "stranger")}
    port, transport = free_ports(2)
    artifacts = ROOT / ".local" / "secured" / "artifacts"
    profile = Profile(home / "node", artifacts, opensearch_port=port, opensearch_transport_port=transport)
    made = Node(f"https://{HOST}:{port}", certificates)
    (home / "opensearch-2.xml").write_text(_pom())
    with patch.object(java, "POMS", home), patch.dict(os.environ, {"STREAM_LOCAL_OPENSEARCH_VERSION": VERSION}):
        profile.make()
        opensearch.install(profile, print)
        _secure(profile, certificates, client_certificates)
        program = replace(opensearch.program(profile), ready=made.ready)
    try:
        up(profile, [program], print)
        yield made
    finally:
        down(profile)


@contextmanager
def neo4j_requiring_a_client_certificate(home: Path) -> Iterator[dict[str, str]]:
    """A Neo4j on its own; yields the settings with which it lets in the client, its certificate included."""
    certificates = {name: certificate(home, name) for name in ("node", "client")}
    (port,) = free_ports(1)
    profile = Profile(home / "neo4j", ROOT / ".local" / "artifacts", neo4j_port=port)
    profile.make()
    neo4j.install(profile, print)
    policy = home / "policy"
    (policy / "trusted").mkdir(parents=True)
    shutil.copy(certificates["node"][0], policy / "public.crt")
    shutil.copy(certificates["node"][1], policy / "private.key")
    shutil.copy(certificates["client"][0], policy / "trusted")
    with (neo4j._conf(profile) / "neo4j.conf").open("a") as file:
        file.write(
            "server.bolt.tls_level=REQUIRED\ndbms.ssl.policy.bolt.enabled=true\n"
            f"dbms.ssl.policy.bolt.base_directory={policy}\ndbms.ssl.policy.bolt.client_auth=REQUIRE\n"
        )
    context = tls.context(certificates["node"][0], *certificates["client"])
    login = (neo4j.USER, profile.neo4j_password)

    def ready() -> bool:
        driver = GraphDatabase.driver(f"bolt://{HOST}:{port}", auth=login, ssl_context=context)
        with suppress(DriverError, Neo4jError), driver:
            driver.verify_connectivity()
            return True
        return False

    try:
        up(profile, [replace(neo4j.program(profile), ready=ready)], print)
        yield {
            "STREAM_NEO4J_URI": f"neo4j+s://{HOST}:{port}",
            "STREAM_NEO4J_PASSWORD": profile.neo4j_password,
            "STREAM_NEO4J_CA_FILE": str(certificates["node"][0]),
            "STREAM_NEO4J_CERT_FILE": str(certificates["client"][0]),
            "STREAM_NEO4J_KEY_FILE": str(certificates["client"][1]),
        }
    finally:
        down(profile)


def _pom() -> str:
    """The POM of the local profile's OpenSearch, with the plugin."""
    items = "<artifactItems>"
    return (java.POMS / "opensearch-2.xml").read_text().replace(items, items + PLUGIN, 1)


def _secure(profile: Profile, certificates: dict[str, tuple[Path, Path]], client_certificates: str) -> None:
    """Adds the plugin's settings, its certificates and its configuration without users."""
    config = opensearch._data(profile) / "config"
    cert, key = certificates["node"]
    (config / "node.pem").write_text(cert.read_text())
    (config / "node.key").write_text(key.read_text())
    trusted = ("node", "admin", "client")
    (config / "trusted.pem").write_text("".join(certificates[name][0].read_text() for name in trusted))
    files = {"pemcert_filepath": "node.pem", "pemkey_filepath": "node.key", "pemtrustedcas_filepath": "trusted.pem"}
    settings = json.loads((config / "opensearch.yml").read_text()) | {
        **{
            f"plugins.security.ssl.{layer}.{name}": file
            for layer in ("http", "transport")
            for name, file in files.items()
        },
        "plugins.security.ssl.http.enabled": True,
        "plugins.security.ssl.http.clientauth_mode": client_certificates,
        "plugins.security.nodes_dn": ["CN=node"],
        "plugins.security.authcz.admin_dn": ["CN=admin"],
        "plugins.security.allow_default_init_securityindex": True,
    }
    (config / "opensearch.yml").write_text(json.dumps(settings))
    plugin = java.distribution(profile, opensearch.NAME) / "plugins" / "opensearch-security" / "config"
    security = config / "opensearch-security"
    shutil.copytree(plugin, security)
    for kind in ("internal_users", "roles", "roles_mapping"):
        meta = yaml.safe_load((plugin / f"{kind}.yml").read_text())["_meta"]
        (security / f"{kind}.yml").write_text(json.dumps({"_meta": meta}))
    authentication = yaml.safe_load((plugin / "config.yml").read_text())
    authentication["config"]["dynamic"]["authc"] = AUTHENTICATION
    (security / "config.yml").write_text(json.dumps(authentication))
    if os.geteuid() == 0:
        opensearch._give_to_nobody(opensearch._data(profile))
