"""What a template consists of, read from its layers and recorded beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from agentlab.model.ids import Digest
from agentlab.model.template import Template

_STANZA = re.compile(r"^(Package|Status|Version): (.*)$", re.MULTILINE)
_SUITE = re.compile(r"^VERSION_CODENAME=\"?([a-z][a-z0-9-]*)\"?$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRecord:
    """One finished build, as it is kept on disk.  `layers` are digests, the first step's first."""

    name: str
    digest: str
    recipe_digest: str
    layers: tuple[str, ...]
    steps: tuple[str, ...]
    bytes_count: int
    built_at: float
    build_s: float
    builder_version: int
    machine: str
    python_version: str
    packages: tuple[tuple[str, str], ...]

    def to_json(self) -> bytes:
        """As it is written to disk."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    @staticmethod
    def from_json(content: bytes) -> BuildRecord:
        """What `to_json` wrote.  ValueError, TypeError or KeyError if it is something else."""
        found = json.loads(content)
        found["layers"], found["steps"] = tuple(found["layers"]), tuple(found["steps"])
        found["packages"] = tuple((str(name), str(version)) for name, version in found["packages"])
        return BuildRecord(**found)

    def template(self) -> Template:
        """As the rest of the daemon knows it."""
        return Template(
            name=self.name,
            digest=Digest(self.digest),
            recipe_digest=Digest(self.recipe_digest),
            state="ready",
            bytes_count=self.bytes_count,
            built_at=self.built_at,
            build_s=self.build_s,
            packages=self.packages,
        )


def packages_of(roots: Sequence[Path]) -> tuple[tuple[str, str], ...]:
    """Names and versions of what the layers (top first) hold: Debian packages, then `pip:` and `npm:` ones."""
    found = dict(_debian(roots))
    for root in reversed(roots):
        found |= dict(_pip(root))
        found |= dict(_npm(root))
    return tuple(sorted(found.items()))


def python_version(packages: Sequence[tuple[str, str]]) -> str:
    """The version of the template's Python such as 3.11.2, or nothing if it has none."""
    versions = dict(packages)
    found = versions.get("python3") or versions.get("python3-minimal") or ""
    return found.partition("-")[0]


def suite_of(roots: Sequence[Path]) -> str:
    """The Debian suite that the layers (top first) were made of, such as bookworm.  ValueError if they do not tell."""
    for file in (root / "usr/lib/os-release" for root in roots):
        if file.is_file() and (found := _SUITE.search(file.read_text(errors="replace"))) is not None:
            return found[1]
    raise ValueError("the template has no /usr/lib/os-release that names its suite")


def _debian(roots: Sequence[Path]) -> Iterator[tuple[str, str]]:
    status = next((file for root in roots if (file := root / "var/lib/dpkg/status").is_file()), None)
    if status is None:
        return
    for stanza in status.read_text(errors="replace").split("\n\n"):
        fields = dict(_STANZA.findall(stanza))
        if fields.get("Status", "").endswith(" installed"):
            yield fields["Package"], fields.get("Version", "")


def _pip(root: Path) -> Iterator[tuple[str, str]]:
    for folder in root.glob("usr/local/lib/python3*/dist-packages/*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").partition("-")
        yield f"pip:{name.replace('_', '-').lower()}", version


def _npm(root: Path) -> Iterator[tuple[str, str]]:
    modules = root / "usr/local/lib/node_modules"
    for file in (*modules.glob("*/package.json"), *modules.glob("@*/*/package.json")):
        try:
            package = json.loads(file.read_bytes())
            yield f"npm:{package['name']}", str(package["version"])
        except (ValueError, KeyError, TypeError):
            continue  # a folder that is not a package
