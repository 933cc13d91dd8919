"""What builds have fetched, kept so that the next build needs no network."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from agentlab.base.clock import Clock
from agentlab.base.files import make_directory, write_atomic
from agentlab.base.process import ProgramFailed, run
from agentlab.templates.sources import reaching

UPDATE_S_MAX = 600
CA_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")

# The environment that tells the caller's package managers how to reach their registries.  It is given to build steps
# alone and never becomes part of a template.
_PASSED = re.compile(r"(?:npm_config_|PIP_)\w+|(?:https?|ftp|all|no)_proxy", re.IGNORECASE)
_CA_VARIABLES = (
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "npm_config_cafile",
)

# Names in the dumps of apt would be kept in memory-mapped caches inside the template without the first two.
_APT = """\
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Keep-Downloaded-Packages "true";
Binary::apt-get::APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
Acquire::Retries "3";
Dpkg::Use-Pty "0";
DPkg::Options:: "--force-confold";
DPkg::Options:: "--force-unsafe-io";
"""


class PackageLists:
    """The package lists of one set of apt sources."""

    def __init__(self, cache: Path, sources: str, clock: Clock) -> None:
        key = hashlib.sha256(sources.encode()).hexdigest()[:16]
        self._clock = clock
        self._folder = cache / "apt" / key
        self.sources = sources
        self.lists = self._folder / "lists"
        self.sources_file = self._folder / "agentlab.sources"
        self._stamp = self._folder / "fetched"

    @property
    def fetched_at(self) -> float | None:
        """When the lists were fetched last (seconds since the epoch); None if never completely."""
        try:
            return float(self._stamp.read_text())
        except (FileNotFoundError, ValueError):
            return None

    async def fetch(self, apt_config: Path) -> None:
        """Fetch the lists; those of before stay usable if that fails.  Raises ProgramFailed."""
        make_directory(self.lists / "partial", 0o755)
        make_directory(self.lists, 0o755)
        write_atomic(self.sources_file, self.sources.encode(), 0o644)
        state = make_directory(self._folder / "state", 0o755)
        (state / "status").touch()
        options = {
            "Dir::Etc::SourceList": self.sources_file,
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": state,
            "Dir::State::Lists": self.lists,
            "Dir::State::status": state / "status",
            "Dir::Cache": state,
        }
        flags = [f"-o{key}={value}" for key, value in options.items()]
        env = {**_plain_environment(), "APT_CONFIG": str(apt_config)}
        await run(["apt-get", *flags, "update", "--error-on=any"], env=env, timeout_s=UPDATE_S_MAX)
        write_atomic(self._stamp, f"{self._clock.now()}\n".encode(), 0o644)


class PackageCache:
    """Downloaded .debs, npm's cache and Python wheels, shared by all builds of an installation."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._clock = clock
        self.folder = folder
        self.archives = folder / "apt" / "archives"
        self.npm = folder / "npm"
        self.wheels = folder / "wheels"

    def prepare(self) -> None:
        """Make the folders."""
        for each in (self.archives / "partial", self.archives, self.npm, self.wheels):
            make_directory(each, 0o755)

    def lists(self, sources: str) -> PackageLists:
        """The package lists for these apt sources (deb822 text)."""
        return PackageLists(self.folder, sources, self._clock)


async def apt_configuration() -> str:
    """apt's configuration during a build: our needs, and how this machine reaches its mirrors."""
    try:
        dump = await run(["apt-config", "dump"], env=_plain_environment(), timeout_s=30)
    except ProgramFailed:
        return _APT
    return 'Dir::Etc::Parts "/nonexistent/";\n' + _APT + reaching(dump.out.decode(errors="replace"))


def ca_bundle(environ: Mapping[str, str]) -> Path | None:
    """The certificates that this machine trusts, in one file; None if it has none."""
    named = [environ[name] for name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE") if environ.get(name)]
    return next((Path(each) for each in (*named, *CA_BUNDLES) if Path(each).is_file()), None)


def build_environment(environ: Mapping[str, str], ca_path: str | None) -> dict[str, str]:
    """The environment of a build step: nothing of the host's but what package managers need to reach a registry.

    A value that names a file of the host is left out, for the step cannot see it.
    """
    passed = {
        name: value
        for name, value in environ.items()
        if _PASSED.fullmatch(name) and not re.search(r"(?:^|\s)(?:/|~|file:)", value)
    }
    certificates = {} if ca_path is None else dict.fromkeys(_CA_VARIABLES, ca_path)
    return {
        **passed,
        **certificates,
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        "DEBCONF_NONINTERACTIVE_SEEN": "true",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_NO_CACHE_DIR": "1",
        "npm_config_audit": "false",
        "npm_config_fund": "false",
        "npm_config_update_notifier": "false",
        "npm_config_prefix": "/usr/local",
    }


def _plain_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if re.fullmatch(r"(?:https?|no)_proxy", name.lower())}
    return {**kept, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
