"""The profiles that this daemon knows, loaded from folders and reloadable."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from agentlab.base.shipped import shipped
from agentlab.base.text import did_you_mean
from agentlab.base.yaml import Located, Place, Problem, check_documents, read_documents, refuse
from agentlab.errors import AgentLabError, NotFound, PermissionMissing, SettingsInvalid
from agentlab.model.profile import Profile
from agentlab.services.profile_file import ProfileFile, refuse_host_mounts, to_profile

log = logging.getLogger(__name__)


class Profiles:
    """A set of profiles by name.  Empty until `load`; the shipped ones come first, so that a user's override them."""

    def __init__(self, folders: Sequence[Path], *, shipped_folder: Path | None = None) -> None:
        """`folders` need not exist; among profiles of one name, the one from the later folder counts."""
        self._folders = (shipped_folder or shipped("profiles"), *folders)
        self._profiles: Mapping[str, Profile] = {}

    def load(self) -> None:
        """Read all folders.  Raises SettingsInvalid with every problem of every file, HostMountRefused,
        or PermissionMissing; the set is then as it was before.
        """
        self._profiles = read_folders(self._folders)

    def reload(self) -> AgentLabError | None:
        """Read all folders again.  What is wrong is logged and returned, and the old set stays in force."""
        try:
            self.load()
        except AgentLabError as error:
            log.error("profiles not reloaded; the old ones stay", extra={"cause": str(error)})
            return error
        log.info("profiles loaded", extra={"profiles": sorted(self._profiles)})
        return None

    def get(self, name: str) -> Profile:
        """The profile of this name.  NotFound suggests the nearest."""
        if (profile := self._profiles.get(name)) is None:
            raise NotFound(noun="profile", name=name, hint=did_you_mean(name, self._profiles))
        return profile

    def list(self) -> tuple[Profile, ...]:
        """All of them, by name."""
        return tuple(self._profiles[name] for name in sorted(self._profiles))

    def validate(self, text: bytes, source: str) -> tuple[Profile, ...]:
        """The profiles in `text`, without adding them.  Raises as `load` does; `source` names it in messages."""
        return tuple(to_profile(document) for document in parse_profiles(text, source))


def parse_profiles(text: bytes, source: str) -> list[Located[ProfileFile]]:
    """Every document of one profile file.  Raises SettingsInvalid, or HostMountRefused."""
    documents = read_documents(text, source)
    refuse_host_mounts(documents)
    found = check_documents(documents, ProfileFile)
    refuse(_doubles(found))
    return found


def read_folders(folders: Sequence[Path]) -> Mapping[str, Profile]:
    """The profiles of all folders; a later folder's override an earlier one's of the same name."""
    profiles: dict[str, Profile] = {}
    problems: list[str] = []
    for folder in folders:
        documents: list[Located[ProfileFile]] = []
        for file in yaml_files(folder):
            try:
                documents += parse_profiles(_read(file), str(file))
            except SettingsInvalid as error:
                problems.append(str(error))
        problems += [str(each) for each in _doubles(documents)]
        profiles |= {document.value.name: to_profile(document) for document in documents}
    if problems:
        raise SettingsInvalid(problems="\n".join(problems))
    return profiles


def yaml_files(folder: Path) -> list[Path]:
    """The `*.yaml` and `*.yml` files in a folder, by name; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if each.suffix in (".yaml", ".yml") and each.is_file())


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise PermissionMissing(
            path=file, cause=error.strerror or str(error), what_to_do=f"Make {file} readable for the daemon's user."
        ) from error


def _doubles(documents: Sequence[Located[ProfileFile]]) -> list[Problem]:
    """Two documents of one folder with the same name: neither can be meant to win."""
    first: dict[str, Located[ProfileFile]] = {}
    problems = []
    for document in documents:
        name = document.value.name
        if name in first:
            message = f"a second profile named {name!r}; the first is at {first[name].place}"
            problems.append(Problem(place=Place(source=document.source, line=document.line, column=1), message=message))
        first.setdefault(name, document)
    return problems
