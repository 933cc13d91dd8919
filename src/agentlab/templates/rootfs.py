"""How each kind of step is carried out."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agentlab.base.files import make_directory, remove_tree, write_atomic
from agentlab.templates.cache import PackageCache, PackageLists, build_environment
from agentlab.templates.isolation import Chamber, namespaces, run_in, run_logged
from agentlab.templates.recipe import Base, Step

STAGE = "run/agentlab-build"
RESOLV_CONF = b"# Written when a sandbox starts.\n"
HOSTS = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

# Left out of every template, as in Debian's own slim images; copyright files stay.
_DPKG_OPTIONS = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
)

_PACKAGES = """\
printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d
chmod 0755 /usr/sbin/policy-rc.d
apt-get install --yes --no-install-recommends -- {names}
rm /usr/sbin/policy-rc.d
rm -rf /var/log/apt /var/log/dpkg.log /var/log/alternatives.log /var/cache/debconf/*-old /var/lib/dpkg/*-old
"""

# Wheels are made once and kept, with all that they need; a second build installs them without asking anybody.
_PIP = """\
command -v pip >/dev/null || {{ echo 'pip is not in the template: add python3-pip to packages'; exit 1; }}
install() {{ pip install --break-system-packages --no-index --find-links /{stage}/wheels -- {names}; }}
install || {{ pip wheel --wheel-dir /{stage}/wheels -- {names}; install; }}
"""

# Once all of these were installed together, the cache serves them without asking anybody.  Only then: with half a
# cache npm would leave out optional packages and say nothing, and the programs of the agents are such.
# Some packages bring their program twice, for glibc and for musl: hundreds of megabytes that nothing here runs.
_NPM = """\
command -v npm >/dev/null || {{ echo 'npm is not in the template: extend node, or add npm to packages'; exit 1; }}
install() {{ npm install --global --cache /{stage}/npm --logs-max=0 "$@" -- {names}; }}
{{ [ -e /{stage}/npm/{stamp} ] && install --offline; }} || install --prefer-online
: > /{stage}/npm/{stamp}
find "$(npm root --global)" -type d -name '*-musl' -path '*/node_modules/*' -prune | while read -r folder; do
  if [ -d "${{folder%-musl}}" ]; then rm -rf "$folder"; fi
done
"""

_SEAL = """\
: > /etc/machine-id
rm -f /var/lib/dbus/machine-id /etc/ssh/ssh_host_* /var/lib/systemd/random-seed
rm -rf /root/.npm /root/.cache /var/cache/debconf/*-old
find /var/log -type f -exec truncate --size=0 {{}} +
printf '%s' {environment} > /etc/environment
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisions:
    """What of the host a build may see.  Files lie in a folder that goes away with the build."""

    cache: PackageCache
    lists: PackageLists
    apt_config: str
    ca_bundle: bytes | None
    resolv_conf: bytes
    environ: Mapping[str, str]
    step_s_max: float


async def carry_out(
    step: Step, layers: Path, lowers: tuple[str, ...], scratch: Path, have: Provisions, on_line: Callable[[str], None]
) -> None:
    """Fill `scratch`/fs with what `step` changes on top of `lowers`.  Raises StepFailed.

    Cancelling ends every process of the step; what lies in `scratch` is then worthless.
    """
    provisions = scratch / "provisions"
    write_atomic(provisions / "apt.conf", have.apt_config.encode(), 0o644)
    if step.base is not None:
        await _bootstrap(step.base, scratch, have, on_line)
        return
    binds: list[tuple[Path, str]] = []
    ca_path = None
    if not step.seal:
        write_atomic(provisions / "resolv.conf", have.resolv_conf, 0o644)
        binds = _shared(step, have, provisions)
        if have.ca_bundle is not None:
            write_atomic(provisions / "ca.pem", have.ca_bundle, 0o644)
            binds.append((provisions / "ca.pem", f"{STAGE}/ca.pem"))
            ca_path = f"/{STAGE}/ca.pem"
    if step.files:
        folder = make_directory(provisions / "files", 0o755)
        for number, file in enumerate(step.files):
            write_atomic(folder / str(number), file.content.encode(), 0o644)
        binds.append((folder, f"{STAGE}/files"))
    env = {**build_environment(have.environ, ca_path), "APT_CONFIG": f"/{STAGE}/apt.conf"}
    if step.seal:
        env.pop("APT_CONFIG")
    else:
        env |= dict(step.env)
    chamber = Chamber(layers=layers, lowers=lowers, scratch=scratch, binds=tuple(binds), env=env)
    await run_in(chamber, script_of(step), scratch / "log", have.step_s_max, on_line)


def script_of(step: Step) -> str:
    """The bash script of a step that runs inside."""
    if step.packages:
        return _PACKAGES.format(names=shlex.join(sorted(step.packages)))
    if step.pip:
        return _PIP.format(names=shlex.join(sorted(step.pip)), stage=STAGE)
    if step.npm:
        names = shlex.join(sorted(step.npm))
        return _NPM.format(
            names=names, stage=STAGE, stamp=f"complete-{hashlib.sha256(names.encode()).hexdigest()[:24]}"
        )
    if step.files:
        return "\n".join(
            f"install -D -o root -g root -m {file.mode:04o} -- /{STAGE}/files/{number} {shlex.quote(file.path)}"
            for number, file in enumerate(step.files)
        )
    if step.seal:
        return _SEAL.format(environment=shlex.quote("".join(f'{name}="{value}"\n' for name, value in step.env)))
    assert step.command is not None, "a step does one thing"
    return step.command


def _shared(step: Step, have: Provisions, provisions: Path) -> list[tuple[Path, str]]:
    """What a step sees of the host.  Caches only where our own script uses them: a recipe's command that empties
    apt's folders, as many do, must not empty the cache of all builds.
    """
    binds = [
        (provisions / "resolv.conf", "etc/resolv.conf"),
        (provisions / "apt.conf", f"{STAGE}/apt.conf"),
    ]
    if step.packages:
        binds += [(have.lists.lists, "var/lib/apt/lists"), (have.cache.archives, "var/cache/apt/archives")]
    if step.pip:
        binds.append((have.cache.wheels, f"{STAGE}/wheels"))
    if step.npm:
        binds.append((have.cache.npm, f"{STAGE}/npm"))
    return binds


async def _bootstrap(base: Base, scratch: Path, have: Provisions, on_line: Callable[[str], None]) -> None:
    """The first layer, by mmdebstrap, with the cached lists and packages mounted into it while it works."""
    root = scratch / "fs"
    lists, archives = shlex.quote(str(have.lists.lists)), shlex.quote(str(have.cache.archives))
    # mmdebstrap's own cleaning would empty the caches through these mounts: it is skipped, and they are unmounted
    # before; all of it happens in a mount namespace that ends with the command.
    enter = (
        f'mkdir -p "$1/var/lib/apt/lists" "$1/var/cache/apt/archives"; '
        f'mount --bind {lists} "$1/var/lib/apt/lists"; mount --bind {archives} "$1/var/cache/apt/archives"'
    )
    leave = 'umount "$1/var/lib/apt/lists" "$1/var/cache/apt/archives"'
    # mmdebstrap has its own way with apt's parts and with dpkg's options.
    options = [line for line in have.apt_config.splitlines() if not line.startswith(("Dir::Etc::", "DPkg::Options"))]
    argv = [
        *namespaces(),
        "mmdebstrap",
        "--mode=root",
        f"--variant={base.variant}",
        "--format=directory",
        "--skip=check/empty,update,download/empty,essential/unlink,cleanup/apt,output/dev",
        *(f"--aptopt={option.rstrip(';')}" for option in options),
        *(f"--dpkgopt={option}" for option in _DPKG_OPTIONS),
        "--dpkgopt=force-unsafe-io",
        f"--setup-hook={enter}",
        f"--customize-hook={leave}",
        base.suite,
        str(root),
        str(have.lists.sources_file),
    ]
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
    await run_logged(argv, env, scratch / "log", have.step_s_max, on_line)
    _finish_base(root)


def _finish_base(root: Path) -> None:
    """Take away what told of this machine, and put plain files where a sandbox writes its own later."""
    for name in ("resolv.conf", "hostname", "hosts", "machine-id", "apt/apt.conf.d/99mmdebstrap"):
        (root / "etc" / name).unlink(missing_ok=True)
    for name, content in (("resolv.conf", RESOLV_CONF), ("hosts", HOSTS), ("hostname", b""), ("machine-id", b"")):
        write_atomic(root / "etc" / name, content, 0o644)
    options = root / "etc/dpkg/dpkg.cfg.d/99mmdebstrap"
    write_atomic(options, options.read_bytes().replace(b"force-unsafe-io\n", b""), 0o644)
    for each in ("dev", "run"):  # filled at each start; no device node may lie in a template
        remove_tree(root / each)
        make_directory(root / each, 0o755)
    root.chmod(0o755)
