"""OpenSearch: one node without plugins, assembled from Maven artifacts.

OpenSearch 2 needs Java's security manager, which Java 24 removed. With Java 24 or newer it is OpenSearch 3, which reads
the data of OpenSearch 2; OpenSearch 2 cannot read those of OpenSearch 3.
"""

import json
import os
import pwd
from functools import partial
from pathlib import Path

import httpx

from stream.errors import ConfigurationError
from stream.local import java
from stream.local.profile import HOST, Profile, variable
from stream.local.supervisor import Program

NAME = "opensearch"
NOBODY = "nobody"  # runs OpenSearch if this process is root: OpenSearch refuses to run as root
JAVA = {"2": range(17, 24), "3": range(21, 1000)}  # by OpenSearch's major version
MODULES = {  # of OpenSearch 2: class, and the module that it extends; the modules' jars have no descriptors
    "mapper-extras": ("org.opensearch.index.mapper.MapperExtrasPlugin", ""),
    "lang-painless": ("org.opensearch.painless.PainlessPlugin", ""),
    "analysis-common": ("org.opensearch.analysis.common.CommonAnalysisPlugin", "lang-painless"),
    "reindex": ("org.opensearch.index.reindex.ReindexPlugin", ""),
}
POLICIES = {  # security policies, which the modules' jars do not have either
    "lang-painless": """\
grant {
  permission java.lang.RuntimePermission "createClassLoader";
  permission java.lang.RuntimePermission "getClassLoader";
};
""",
    "reindex": """\
grant { permission java.net.SocketPermission "*", "connect"; };
grant codeBase "${codebase.opensearch-rest-client}" { permission java.net.NetPermission "getProxySelector"; };
grant codeBase "${codebase.httpasyncclient}" { permission java.net.NetPermission "getProxySelector"; };
""",
}


def install(profile: Profile, on_event: java.Event) -> None:
    """Assembles OpenSearch and writes its configuration. As root, it makes `nobody` the owner of the server's data."""
    folder = java.assemble(profile, pom(), on_event, _complete)
    data = _data(profile)
    for part in ("config", "data", "logs", "tmp"):
        (data / part).mkdir(parents=True, exist_ok=True)
    _replace_file(data / "config" / "log4j2.properties", (folder / "config" / "log4j2.properties").read_text())
    _replace_file(data / "config" / "opensearch.yml", _settings(profile))
    if os.geteuid() == 0:
        _give_to_nobody(data)


def pom() -> str:
    """The POM of the version in `STREAM_LOCAL_OPENSEARCH_VERSION`, else of the version that fits this Java."""
    runtime, wanted = java.find(), os.environ.get(variable(f"{NAME}_version"))
    if wanted is None:
        return f"{NAME}-{2 if runtime.version in JAVA['2'] else 3}"
    major = wanted.partition(".")[0]
    if runtime.version not in JAVA.get(major, ()):
        raise ConfigurationError(
            f"OpenSearch {wanted} does not run here: OpenSearch 2 needs Java {JAVA['2'][0]} to {JAVA['2'][-1]}, "
            f"OpenSearch 3 needs {JAVA['3'][0]} or newer, others are not supported, and {runtime.executable} is "
            f"{runtime.version}"
        )
    return f"{NAME}-{major}"


def program(profile: Profile) -> Program:
    """OpenSearch as a supervised program. It is ready when its cluster is at least yellow."""
    runtime = java.find()
    data, folder = _data(profile), java.distribution(profile, pom())
    return Program(
        name=NAME,
        command=[
            runtime.executable,
            *("-Xms512m", "-Xmx512m", "-Xss1m", "-XX:+UseG1GC", "-XX:G1ReservePercent=25"),
            *("-XX:InitiatingHeapOccupancyPercent=30", "-XX:-OmitStackTraceInFastThrow", "-XX:+ExitOnOutOfMemoryError"),
            *(f"-XX:ErrorFile={data}/logs/hs_err_pid%p.log", "-Djava.awt.headless=true", "-Dfile.encoding=UTF-8"),
            *(f"-Djava.io.tmpdir={data / 'tmp'}", f"-Djna.tmpdir={data / 'tmp'}", "-Djna.nosys=true"),
            *("-Dio.netty.noUnsafe=true", "-Dio.netty.noKeySetOptimization=true"),
            *("-Dio.netty.recycler.maxCapacityPerThread=0", "-Dio.netty.allocator.numDirectArenas=0"),
            *("-Dlog4j.shutdownHookEnabled=false", "-Dlog4j2.disable.jmx=true"),
            *("-Dopensearch.networkaddress.cache.ttl=60", "-Dopensearch.networkaddress.cache.negative.ttl=10"),
            *(f"-Dopensearch.path.home={folder}", f"-Dopensearch.path.conf={data}/config"),
            *("-Dopensearch.distribution.type=zip", "-Dopensearch.bundled_jdk=false"),
            *(_options_of_2(runtime) if folder.name.startswith(f"{NAME}-2.") else _options_of_3(folder)),
            *(("-Djava.locale.providers=SPI,COMPAT",) if runtime.version <= 22 else ()),
            *((f"--add-modules={java.SIMD}",) if runtime.version >= 20 and java.SIMD in runtime.modules else ()),
            *("-cp", f"{folder}/lib/*", "org.opensearch.bootstrap.OpenSearch"),
        ],
        log=profile.home / "logs" / "opensearch.log",
        ready=partial(_ready, profile.opensearch_port),
        address=f"http://{HOST}:{profile.opensearch_port}",
        directory=data,
        environment=java.environment(_settings(profile)),
        ports=("opensearch_port", "opensearch_transport_port"),
        privileges=privileges(folder, data) if os.geteuid() == 0 else (),
        ready_seconds=180,
    )


def _options_of_2(runtime: java.Java) -> list[str]:
    return [
        "-Djava.util.concurrent.ForkJoinPool.common.threadFactory="
        "org.opensearch.secure_sm.SecuredForkJoinWorkerThreadFactory",
        *(("-Djava.security.manager=allow",) if runtime.version >= 18 else ()),
    ]


def _options_of_3(folder: Path) -> list[str]:
    return [
        f"-javaagent:{folder}/agent/opensearch-agent.jar",
        "-Dorg.apache.lucene.store.MMapDirectory.sharedArenaMaxPermits=1",
        "--add-opens=java.base/java.nio=ALL-UNNAMED",
        "--enable-native-access=ALL-UNNAMED",
    ]


def _data(profile: Profile) -> Path:
    return profile.home / "data" / "opensearch"


def _settings(profile: Profile) -> str:
    """The configuration. Writes do not create indexes; a nearly full disk (as on many laptops) does not block them."""
    data = _data(profile)
    settings = {
        "cluster.name": "local",
        "node.name": "local-1",
        "path.data": str(data / "data"),
        "path.logs": str(data / "logs"),
        "network.host": HOST,
        "http.port": profile.opensearch_port,
        "transport.port": profile.opensearch_transport_port,
        "discovery.type": "single-node",
        "cluster.routing.allocation.disk.threshold_enabled": False,
        "action.auto_create_index": False,
    }
    return json.dumps(settings, indent=2)  # JSON is YAML


def _complete(folder: Path) -> None:
    (folder / "plugins").mkdir(exist_ok=True)
    (folder / "plugins").chmod(0o755)
    version = folder.name.removeprefix("opensearch-").removesuffix(".part")
    if version.startswith("3."):  # its modules are complete
        return
    for module, (plugin, extends) in MODULES.items():
        descriptor = (
            f"name={module}\ndescription={module}\nversion={version}\nopensearch.version={version}\n"
            f"java.version=11\nclassname={plugin}\nextended.plugins={extends}\n"
            "custom.foldername=\nhas.native.controller=false\n"
        )
        _write_public(folder / "modules" / module / "plugin-descriptor.properties", descriptor)
    for module, policy in POLICIES.items():
        _write_public(folder / "modules" / module / "plugin-security.policy", policy)


def _replace_file(path: Path, text: str) -> None:
    """Replaces a file without following a link: root writes here into a folder that `nobody` owns."""
    path.unlink(missing_ok=True)
    with path.open("x") as file:
        file.write(text)


def _write_public(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)  # independent of the umask, because another user may have to read it


def _give_to_nobody(data: Path) -> None:
    nobody = pwd.getpwnam(NOBODY)
    for path in (data, *data.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)


def privileges(*folders: Path) -> list[str]:
    """Options with which setpriv runs a program as `nobody`, who may traverse closed parents of these folders."""
    options = [f"--reuid={NOBODY}", f"--regid={pwd.getpwnam(NOBODY).pw_gid}", "--clear-groups"]
    above = {parent for folder in folders for parent in folder.parents if parent.exists()}
    if not all(parent.stat().st_mode & 0o001 for parent in above):
        capability = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        # Without this bit, access(2) ignores capabilities, and Java uses access(2).
        options += ["--securebits=+no_setuid_fixup", *capability]
    return options


def _ready(port: int) -> bool:
    url = f"http://{HOST}:{port}/_cluster/health"
    try:
        answer = httpx.get(url, params={"wait_for_status": "yellow", "timeout": "1s"}, timeout=5, trust_env=False)
    except httpx.TransportError:
        return False
    return answer.status_code == 200
