"""The daemon's settings: one value, read once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentlab.base.places import SETTINGS_NAME, SOCKET_PATH_BYTES_MAX, Places, places
from agentlab.base.yaml import Document, Place, check_documents, read_documents
from agentlab.daemon.schema import Settings
from agentlab.errors import PermissionMissing, SettingsInvalid

__all__ = ["Settings", "load_settings"]


def load_settings(path: Path | None, environ: Mapping[str, str], uid: int, directory: Path | None = None) -> Settings:
    """The settings from `path`; without one, from `agentlabd.yaml` in the config directory, which need not exist.

    `directory` (`--dir`) or $AGENTLAB_DIR puts everything below one folder.  Raises SettingsInvalid naming every
    problem, PermissionMissing if the file cannot be read.
    """
    try:
        where = places(environ, uid, directory)
    except ValueError as error:
        raise SettingsInvalid(problems=str(error)) from error
    file = path or where.config / SETTINGS_NAME
    text = _read(file, needed=path is not None)
    source = "defaults" if text is None else str(file)
    documents = [] if text is None else read_documents(text, str(file))
    if len(documents) > 1:
        place = documents[1].place
        raise SettingsInvalid(problems=f"{place}: a second document; settings are one document")
    nowhere = Place(source=source, line=1, column=1)
    document = documents[0] if documents else Document(value={}, place=nowhere, places={}, keys={}, raw={})
    settings = check_documents([_completed(document, where)], Settings)[0].value
    settings._source = source
    _check_socket(settings, document)
    return settings


def _read(file: Path, *, needed: bool) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        if needed:
            raise SettingsInvalid(problems=f"{file}: there is no such file") from None
        return None
    except OSError as error:
        raise PermissionMissing(
            path=file, cause=error.strerror or str(error), what_to_do=f"Make {file} readable for the daemon's user."
        ) from error


def _completed(document: Document, where: Places) -> Document:
    """The document with what depends on the machine and the user filled in where the file does not say."""
    given = document.value
    if not isinstance(given, dict):
        return document
    config = _path_or(given.get("config_dir"), where.config)
    run = _path_or(given.get("run_dir"), where.run)
    defaults: dict[str, Any] = {
        "config_dir": config,
        "state_dir": where.state,
        "cache_dir": where.cache,
        "run_dir": run,
        "socket": run / where.socket.name,
        "profile_dirs": [config / "profiles"],
        "template_dirs": [config / "templates"],
    }
    return replace(document, value={**defaults, **given})


def _path_or(given: object, default: Path) -> Path:
    return Path(given) if isinstance(given, str) else default


def _check_socket(settings: Settings, document: Document) -> None:
    length = len(os.fsencode(settings.socket))
    if length > SOCKET_PATH_BYTES_MAX:
        place = document.places.get(("socket",), document.place)
        raise SettingsInvalid(
            problems=f"{place}: the socket path {settings.socket} has {length} bytes; the system allows at most "
            f"{SOCKET_PATH_BYTES_MAX}.  Choose a shorter directory with --dir, or set `socket`."
        )
