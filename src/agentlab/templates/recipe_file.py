"""How a recipe is written in YAML."""

from __future__ import annotations

import posixpath
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from agentlab.base.yaml import StrictModel
from agentlab.model.ids import NAME_LENGTH_MAX, is_name

COMMAND_BYTES_MAX = 64 << 10
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_PIP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:\[[A-Za-z0-9,._-]+\])?==[A-Za-z0-9.!+_-]+")
_NPM = re.compile(r"(?:@[a-z0-9~-][a-z0-9._~-]*/)?[a-z0-9~-][a-z0-9._~-]*@[0-9][A-Za-z0-9.+-]*")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _name(value: str) -> str:
    if not is_name(value):
        raise ValueError(
            f"{value!r} is not a name: lower-case letters, digits and hyphens, at most {NAME_LENGTH_MAX}, "
            "not beginning with sb- or job-"
        )
    return value


def _suite(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]*", value):
        raise ValueError(f"{value!r} is not the name of a Debian suite, such as bookworm")
    return value


def _mirror(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"(?:https?://|file:/|copy:/)\S+", value):
        raise ValueError(f"{value!r} is not the address of a Debian mirror: http, https, file or copy")
    return value


def _title(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[\w .:-]{1,60}", value):
        raise ValueError(f"{value!r} is not a short title: letters, digits, spaces and . : - up to 60")
    return value


def _package(value: str) -> str:
    if not _PACKAGE.fullmatch(value):
        raise ValueError(f"{value!r} is not the name of a Debian package")
    return value


def _pip(value: str) -> str:
    if not _PIP.fullmatch(value):
        raise ValueError(f"{value!r} is not a pinned Python package; write name==version")
    return value


def _npm(value: str) -> str:
    if not _NPM.fullmatch(value):
        raise ValueError(f"{value!r} is not a pinned npm package; write name@version")
    return value


def _file_path(value: str) -> str:
    if not value.startswith("/") or value == "/" or posixpath.normpath(value) != value or "\0" in value:
        raise ValueError(f"{value!r} is not an absolute path without `..`, `//` or a slash at its end")
    if value.split("/")[1] in ("proc", "sys", "dev", "run", "tmp"):
        raise ValueError(f"{value!r} lies in a folder that a sandbox fills anew at each start")
    return value


def _mode(value: object) -> object:
    text = f"0{value}" if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError(f"{value!r} is not a file mode; write for example 0644")
    return text


def _command(value: object) -> object:
    return {"run": value} if isinstance(value, str) else value


def _script(value: str) -> str:
    if not value.strip():
        raise ValueError("an empty command")
    if len(value.encode()) > COMMAND_BYTES_MAX:
        raise ValueError(f"longer than COMMAND_BYTES_MAX = {COMMAND_BYTES_MAX} bytes")
    if "\0" in value:
        raise ValueError("a NUL character cannot stand in a command")
    return value


def _env(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not _ENV_NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name an environment variable")
        if re.search(r"[\0\n\r\"]", text):
            raise ValueError(f"{name}: line breaks, NUL and double quotes cannot stand in /etc/environment")
    return value


Name = Annotated[str, AfterValidator(_name)]


class BaseFile(StrictModel):
    """Which Debian the first layer is."""

    suite: Annotated[str, AfterValidator(_suite)] = "bookworm"
    variant: Literal["minbase", "apt", "essential"] = "minbase"
    mirror: Annotated[str | None, AfterValidator(_mirror)] = None


class FileFile(StrictModel):
    """A file of the template."""

    path: Annotated[str, AfterValidator(_file_path)]
    content: str
    mode: Annotated[str, BeforeValidator(_mode)] = "0644"


class CommandFile(StrictModel):
    """A bash script, run as root inside the template; any command that fails ends it."""

    run: Annotated[str, AfterValidator(_script)]
    name: Annotated[str | None, AfterValidator(_title)] = None


class RecipeFile(StrictModel):
    """One document of a recipe file.  Steps run in the order of the fields, each making one layer."""

    name: Name
    description: str = Field(default="", max_length=500)
    extends: Name | None = None
    base: BaseFile | None = None
    packages: tuple[Annotated[str, AfterValidator(_package)], ...] = ()
    pip: tuple[Annotated[str, AfterValidator(_pip)], ...] = ()
    npm: tuple[Annotated[str, AfterValidator(_npm)], ...] = ()
    files: tuple[FileFile, ...] = ()
    commands: tuple[Annotated[CommandFile, BeforeValidator(_command)], ...] = ()
    env: Annotated[dict[str, str], AfterValidator(_env)] = {}

    @model_validator(mode="after")
    def _one_beginning(self) -> RecipeFile:
        if self.extends is not None and self.base is not None:
            raise ValueError("either `extends` or `base`: what it extends has a base already")
        return self
