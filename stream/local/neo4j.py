"""Neo4j Community with authentication."""

from functools import partial
from pathlib import Path

from neo4j import GraphDatabase
from neo4j.exceptions import AuthError, DriverError, Neo4jError

from stream.errors import ConfigurationError
from stream.local import java
from stream.local.profile import HOST, Profile
from stream.local.supervisor import Program

NAME = "neo4j"
USER = "neo4j"
OPTIONS = [  # from Neo4j's start script
    "-XX:+UseG1GC",
    "-XX:-OmitStackTraceInFastThrow",
    "-XX:+UnlockExperimentalVMOptions",
    "-XX:+TrustFinalNonStaticFields",
    "-XX:+DisableExplicitGC",
    "-Djdk.nio.maxCachedBufferSize=1024",
    "-Dio.netty.tryReflectionSetAccessible=true",
    "-Dio.netty.leakDetection.level=DISABLED",
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "--add-opens=java.base/java.io=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent=ALL-UNNAMED",
    "--enable-native-access=ALL-UNNAMED",
    "-Dlog4j2.disable.jmx=true",
    "-Dlog4j.layout.jsonTemplate.maxStringLength=32768",
    "-Dfile.encoding=UTF-8",
]


def install(profile: Profile, on_event: java.Event) -> None:
    """Assembles Neo4j, writes its configuration and, before the first start, sets the password."""
    runtime = java.find()
    folder = java.assemble(profile, NAME, on_event)
    data, conf = _data(profile), _conf(profile)
    conf.mkdir(parents=True, exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)
    (conf / "neo4j.conf").write_text(_settings(profile))
    if not any((data / "data" / known).exists() for known in ("dbms/auth.ini", "databases/system")):
        assert profile.neo4j_password, "reading the property creates the file"
        # Passed as a file name, because every user of the machine can read a command line.
        tool = ["org.neo4j.cli.AdminTool", "dbms", "set-initial-password", f"@{profile.home / 'neo4j-password'}"]
        options = [*OPTIONS, "-cp", f"{folder}/lib/*"]
        java.run(runtime, [*options, *tool], profile.home, NEO4J_HOME=str(data), NEO4J_CONF=str(conf))


def program(profile: Profile) -> Program:
    """Neo4j as a supervised program. It is ready when it answers a query, seconds after it opens its port."""
    runtime = java.find()
    return Program(
        name=NAME,
        command=[
            runtime.executable,
            *("-Xms256m", "-Xmx1g", *OPTIONS),
            *((f"--add-modules={java.SIMD}",) if java.SIMD in runtime.modules else ()),
            *("-cp", f"{java.distribution(profile, NAME)}/lib/*", f"org.neo4j.server.{_entry_point()}"),
            *(f"--home-dir={_data(profile)}", f"--config-dir={_conf(profile)}", "--console-mode"),
        ],
        log=profile.home / "logs" / "neo4j.log",
        ready=partial(_ready, profile),
        address=f"bolt://{HOST}:{profile.neo4j_port}",
        directory=profile.home,
        environment=java.environment(_settings(profile)),
        ports=("neo4j_port",),
        stop_seconds=60,
    )


def _entry_point() -> str:
    return "CommunityEntryPoint" if java.version(NAME).startswith("5.") else "Neo4jCommunity"


def _data(profile: Profile) -> Path:
    return profile.home / "data" / "neo4j"


def _conf(profile: Profile) -> Path:
    return profile.home / "conf" / "neo4j"


def _settings(profile: Profile) -> str:
    return f"""\
server.default_listen_address={HOST}
server.bolt.enabled=true
server.bolt.listen_address={HOST}:{profile.neo4j_port}
server.bolt.advertised_address={HOST}:{profile.neo4j_port}
server.http.enabled=false
server.https.enabled=false
dbms.security.auth_enabled=true
server.memory.pagecache.size=512m
db.tx_log.preallocate=false
db.tx_log.rotation.size=64m
db.tx_log.rotation.retention_policy=256M size
dbms.usage_report.enabled=false
"""


def _ready(profile: Profile) -> bool:
    address, auth = f"bolt://{HOST}:{profile.neo4j_port}", (USER, profile.neo4j_password)
    try:
        with GraphDatabase.driver(address, auth=auth, connection_timeout=2) as driver, driver.session() as session:
            session.run("RETURN 1").consume()
    except AuthError:
        raise ConfigurationError(
            f"Neo4j authentication failed: its data have another password than {profile.home / 'neo4j-password'}; "
            f"restore the old file, or stop Neo4j and delete {_data(profile)}"
        ) from None
    except (DriverError, Neo4jError):
        return False
    return True
