"""Where packages come from: this machine's apt sources, or a mirror that was named."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_POCKETS = ("{suite}", "{suite}-updates", "{suite}-security", "{suite}/updates")
# The machine's settings that decide how a mirror is reached; the rest of its apt configuration is its own affair.
_REACHING = re.compile(r"Acquire::(?:https?|Check-Valid-Until|Check-Date|Retries|ForceIPv[46])\b.*;")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One stanza of apt sources."""

    fields: tuple[tuple[str, str], ...]

    def text(self) -> str:
        """As deb822, ending with a newline."""
        return "".join(f"{key}: {value}\n" for key, value in self.fields)


def from_mirror(mirror: str, suite: str) -> str:
    """deb822 text for the main component of one mirror."""
    fields = (("Types", "deb"), ("URIs", mirror), ("Suites", suite), ("Components", "main"), ("Signed-By", KEYRING))
    return Source(fields=fields).text()


def of_machine(suite: str, etc: Path = Path("/etc/apt")) -> str:
    """deb822 text of the machine's sources that serve `suite`, its updates and security fixes; empty if none does."""
    texts = [(file, _read(file)) for file in (etc / "sources.list", *_sorted(etc / "sources.list.d"))]
    found: list[str] = []
    for file, text in texts:
        stanzas = parse_deb822(text) if file.suffix == ".sources" else parse_list(text)
        found += [kept.text() for stanza in stanzas if (kept := _serving(stanza, suite)) is not None]
    return "\n".join(dict.fromkeys(found))


def reaching(dump: str) -> str:
    """From the output of `apt-config dump`, what decides how mirrors are reached: proxies, certificates, retries."""
    return "".join(f"{line}\n" for line in dump.splitlines() if _REACHING.match(line) and not line.endswith(' "";'))


def parse_deb822(text: str) -> list[Source]:
    """The stanzas of a `.sources` file."""
    stanzas: list[Source] = []
    for block in re.split(r"\n[ \t]*\n", text):
        fields: list[tuple[str, str]] = []
        for line in block.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0] in " \t" and fields:
                fields[-1] = (fields[-1][0], f"{fields[-1][1]}\n{line}")
            elif ":" in line:
                key, _, value = line.partition(":")
                fields.append((key.strip(), value.strip()))
        if fields:
            stanzas.append(Source(fields=tuple(fields)))
    return stanzas


def parse_list(text: str) -> list[Source]:
    """The lines of a one-line-style file as stanzas."""
    stanzas: list[Source] = []
    for line in text.splitlines():
        match = re.fullmatch(
            r"\s*(deb|deb-src)\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+\S+)*)\s*", line.split("#")[0]
        )
        if match is None:
            continue
        options = [option.partition("=") for option in shlex.split(match[2] or "")]
        names = {"arch": "Architectures", "signed-by": "Signed-By", "trusted": "Trusted"}
        fields = [("Types", match[1]), ("URIs", match[3]), ("Suites", match[4]), ("Components", match[5].strip())]
        fields += [(names[key.lower()], value.replace(",", " ")) for key, _, value in options if key.lower() in names]
        stanzas.append(Source(fields=tuple((key, value) for key, value in fields if value)))
    return stanzas


def _serving(source: Source, suite: str) -> Source | None:
    """The stanza narrowed to the pockets of `suite`, or None if it is of something else."""
    fields = {key.lower(): value for key, value in source.fields}
    wanted = {pocket.format(suite=suite) for pocket in _POCKETS}
    suites = [each for each in fields.get("suites", "").split() if each in wanted]
    components = fields.get("components", "").split()
    disabled = fields.get("enabled", "yes").lower() in ("no", "false", "0")
    if not suites or "main" not in components or "deb" not in fields.get("types", "").split() or disabled:
        return None
    changed = {"types": "deb", "suites": " ".join(suites)}
    return Source(fields=tuple((key, changed.get(key.lower(), value)) for key, value in source.fields))


def _sorted(folder: Path) -> Iterable[Path]:
    if not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if each.suffix in (".list", ".sources"))


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""  # unreadable or absent: apt itself would not use it either
