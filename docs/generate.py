"""Writes what the code knows into docs/: the reference pages, and the drawings between markers in other pages.

`make docs` runs it; tests/docs checks that what is committed is what it would write.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from agentlab import errors as all_errors
from agentlab.api.identity import GRANTS, Role
from agentlab.backends.interface import Gone, Refused, Unavailable
from agentlab.backends.proxmox import privileges as proxmox
from agentlab.backends.proxmox.failures import OUTCOMES, TEXTS, Kind
from agentlab.backends.proxmox.setup import IMPORT_TYPES, Wanted, script
from agentlab.base.shipped import shipped
from agentlab.base.units import format_bytes, format_seconds
from agentlab.base.yaml import check_documents, read_documents
from agentlab.cli.root import root
from agentlab.daemon.reference import setting_rows
from agentlab.errors import ERRORS, AgentLabError
from agentlab.model.agents import AGENTS
from agentlab.model.event import EVENTS
from agentlab.model.machine import JOB_NEXT, SANDBOX_NEXT, SNAPSHOT_NEXT
from agentlab.services.profile_file import ProfileFile, to_profile
from agentlab.wire.routes import ALWAYS, ROUTES, Route

DOCS = Path(__file__).resolve().parent
SOURCES = DOCS.parent / "src"
NOTE = "<!-- Written by docs/generate.py from the code: change it there, then `make docs`. -->"
LIMIT = re.compile(r"(_MAX|_MIN|_S)$")
WIDTH = 100


def pages() -> dict[Path, str]:
    """Every generated file with its content; of pages with markers, the whole page."""
    reference = DOCS / "reference"
    made = {
        "settings": settings,
        "errors": errors,
        "events": events,
        "api": api,
        "cli": cli,
        "limits": limits,
        "agents": agents,
        "profiles": profiles,
        "states": states,
        "proxmox-privileges": proxmox_privileges,
    }
    found = {reference / f"{name}.md": f"{NOTE}\n\n{write().strip()}\n" for name, write in made.items()}
    drawings = {
        "sandbox-states": mermaid(SANDBOX_NEXT),
        "job-states": mermaid(JOB_NEXT),
        "snapshot-states": mermaid(SNAPSHOT_NEXT),
    }
    found[DOCS / "concepts/states.md"] = marked((DOCS / "concepts/states.md").read_text(), drawings)
    trouble = DOCS / "howto/proxmox-troubleshooting.md"
    found[trouble] = marked(trouble.read_text(), {"proxmox-kinds": proxmox_kinds()})
    return found


def marked(text: str, drawings: Mapping[str, str]) -> str:
    """`text` with each drawing between its markers, `<!-- begin NAME -->` and `<!-- end NAME -->`."""
    for name, drawing in drawings.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.S)
        assert pattern.search(text), f"no markers for {name}"
        text = pattern.sub(lambda match: match[1] + drawing + "\n" + match[2], text)  # noqa: B023 - used at once
    return text


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(
        "| " + " | ".join(each.replace("|", "\\|").replace("\n", " ") for each in row) + " |" for row in lines
    )


def settings() -> str:
    """Every setting, from the schema."""
    rows = [(f"`{row.name}`", row.kind, f"`{row.default}`", row.description) for row in setting_rows()]
    return f"""# Settings

`agentlabd` reads one YAML file, `agentlabd.yaml` in its config directory, or the one named with `--config`; without a file
the defaults serve.  Dotted names are nested in the file.  An unknown name is refused with the nearest one, and all problems
are told at once, with line and column.  `agentlabd --check` checks a file.  Sizes are written as `512MiB`, durations as
`90s`, `15m`, `1h30m` or a number of seconds.

{table(("setting", "kind", "default", "what it does"), rows)}
"""


def errors() -> str:
    """Every error, from its class."""
    parts = [
        """# Errors

Every error has a code that does not change, a message made of facts, and a remedy.  Over HTTP it is
`application/problem+json` with `code`, `message`, `cause`, `remedy`, `docs`, `retryable` and `request_id`; the CLI prints
message and remedy and ends with the exit code.  Exit code 0 is success, 130 an interruption by Ctrl-C.
"""
    ]
    rows = [(f"`{code}`", str(each.status), str(each.exit_code), "yes" if each.retryable else "no", f"[{each.__name__}](#{_slug(code)})")
            for code, each in sorted(ERRORS.items())]  # fmt: skip
    parts.append(table(("code", "HTTP status", "exit code", "may be retried", "class"), rows))
    for code, each in sorted(ERRORS.items()):
        parts.append(_error(code, each))
    return "\n\n".join(parts)


def _error(code: str, error: type[AgentLabError]) -> str:
    told = _plain(error.message), _plain(error.remedy)
    return f"## `{code}`\n\n{_sentence(error)}\n\n- Message: {told[0]}\n- Remedy: {told[1]}"


def _plain(text: str) -> str:
    """A format text with its facts as words."""
    return re.sub(r"\{(\w+)(![rs])?\}", lambda match: f"*{match[1].replace('_', ' ')}*", text)


def events() -> str:
    """Every event, from its class."""
    rows = []
    for name, each in sorted(EVENTS.items()):
        data = ", ".join(f"`{field.name}`" for field in fields(each) if field.name != "subject")
        rows.append((f"`{name}`", _sentence(each), data))
    return f"""# Events

Facts in the past tense, appended in the same transaction as the change that they tell.  `agentlab event list` and
`agentlab event follow` show them; over HTTP, `GET /v1/events` and `GET /v1/events/stream`.  Each has a sequence number `seq`, an
instant `at`, a `type`, a `subject` (the id of the sandbox or job, or the name of the template) and `data`.

{table(("type", "when", "data"), rows)}
"""


def api() -> str:
    """Every route, from its row."""
    roles = [(f"`{role.value}`", " ".join(f"`{each}`" for each in sorted(GRANTS[role]))) for role in Role]
    parts = [
        f"""# API

HTTP and JSON under `/v1`, on the daemon's Unix socket.  The caller is who the kernel says it is: root and the daemon's own user
are `admin`, everybody else who may open the socket is `user`.  A user sees and changes what is its own.  A route is denied
unless its row says who may.

{table(("role", "permissions"), roles)}

Mutations take an `Idempotency-Key`: the same key with the same request happens once.  Unknown fields are refused.  Any route may
also answer with {", ".join(_link(each) for each in ALWAYS)}.  As an OpenAPI
document for tools: `GET /v1/openapi.json`.
"""
    ]
    nouns = dict.fromkeys(name.partition(".")[0] for name in ROUTES)
    for noun in nouns:
        parts.append(f"## {noun}")
        parts += [_route(route) for name, route in ROUTES.items() if name.startswith(noun + ".")]
    return "\n\n".join(parts)


def _route(route: Route) -> str:
    lines = [f"### `{route.method} {route.path}`", "", route.doc, ""]
    owner = f" on that {route.target}" if route.target in ("sandbox", "job") else ""
    lines.append(f"- `{route.name}` in the SDK; needs `{route.permission}`{owner}")
    for title, model in (("Query", route.query_type), ("Body", route.request_type)):
        if model is not None:
            lines.append(f"- {title}: {_shape(model)}")
    if route.upload:
        lines.append("- Body: bytes, streamed")
    answer = route.response or {"sse": "server-sent events", "websocket": "a WebSocket", None: "nothing"}.get(
        route.stream, route.stream
    )
    lines.append(f"- Answer: {route.status}, {answer}")
    if route.errors:
        lines.append(f"- Errors: {', '.join(_link(each) for each in dict.fromkeys(route.errors))}")
    return "\n".join(lines)


def _shape(model: type[BaseModel]) -> str:
    return ", ".join(f"`{name}`" + ("" if not field.is_required() else " (needed)") for name, field in model.model_fields.items()) or "none"  # fmt: skip


def _link(error: type[AgentLabError]) -> str:
    return f"[`{error.code}`](errors.md#{_slug(error.code)})"


def cli() -> str:
    """Every command, as its own help shows it."""
    parts = [
        """# Command line

`--json` on every command prints values for programs on standard output; remarks go to standard error.  The daemon is the one that
`--socket`, `AGENTLAB_SOCKET` or `AGENTLAB_DIR` names, else the user's own if it runs, else the system's.  Exit codes stand with
the [errors](errors.md); `sandbox exec` ends with the status of the command.
"""
    ]
    parts += [f"## `{name}`\n\n```\n{text}\n```" for name, text in _commands(root, None, "agentlab")]
    return "\n\n".join(parts)


def _commands(command: click.Command, parent: click.Context | None, name: str) -> Iterator[tuple[str, str]]:
    settings = command.context_settings | {"terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, parent=parent, info_name=name, **settings)
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield context.command_path, text
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            if found is not None and not found.hidden:
                yield from _commands(found, context, each)


def limits() -> str:
    """Every named limit, from the constants of the modules."""
    rows = [(f"`{name}`", value, f"`{module}`", comment) for module, name, value, comment in sorted(_limits(), key=lambda row: (row[0], row[1]))]  # fmt: skip
    return f"""# Limits

Everything has a limit with a name; reaching it is an error or an event that says the name.  Limits that can be set are
[settings](settings.md); these are built in.

{table(("name", "value", "module", "remark"), rows)}
"""


def _limits() -> Iterator[tuple[str, str, str, str]]:
    for path in sorted(SOURCES.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCES).with_suffix("").parts)
        if module.startswith("agentlab.testing"):
            continue
        text = path.read_text()
        lines = text.splitlines()
        for node in ast.parse(text).body:
            target = (
                node.targets[0]
                if isinstance(node, ast.Assign)
                else node.target
                if isinstance(node, ast.AnnAssign)
                else None
            )
            if isinstance(target, ast.Name) and LIMIT.search(target.id) and not target.id.startswith("_"):
                value = getattr(import_module(module), target.id)
                if isinstance(value, int | float):
                    yield module, target.id, _amount(target.id, value), _remark(lines[(node.end_lineno or 1) - 1])


def _amount(name: str, value: float) -> str:
    if "_BYTES" in name:
        return format_bytes(int(value))
    if re.search(r"_S(_|$)", name):
        return format_seconds(value)
    return f"{value:,}"


def _remark(line: str) -> str:
    return line.partition("  # ")[2].partition("noqa")[0].strip(" :#")


def agents() -> str:
    """Every agent, from its row."""
    rows = []
    for agent in AGENTS.values():
        keys = " or ".join(f"`{each}`" for each in agent.key_names) or "none"
        rows.append((f"`{agent.name}`", agent.title, f"`{' '.join(agent.argv)}`", agent.prompt.value, keys, f"`{agent.template}`", f"`{agent.npm}`" if agent.npm else ""))  # fmt: skip
    heads = ("name", "what", "command line", "the task comes by", "key", "template", "npm package")
    return f"""# Agents

What `--agent` and a profile's `agent` accept.  An agent is data: how it is installed, started without a terminal, and given its task.
One of the named keys has to be in the job's environment (`--env NAME` takes it from yours).

{table(heads, rows)}
"""


def profiles() -> str:
    """The shipped profiles and the shape of a profile file."""
    found = []
    for path in sorted(shipped("profiles").glob("*.yaml")):
        for each in check_documents(read_documents(path.read_bytes(), path.name), ProfileFile):
            found.append(to_profile(each))
    rows = [
        (
            f"`{each.name}`", each.description, f"`{each.template}`", f"`{each.user}`", f"{each.resources.cpus:g} CPUs, "
            f"{format_bytes(each.resources.memory_bytes)}, {format_bytes(each.resources.disk_bytes)} disk",
            f"`{each.network.value}`", format_seconds(each.ttl_s), "kept" if each.keepalive else "destroyed",
        )
        for each in found
    ]  # fmt: skip
    heads = ("name", "what for", "template", "user", "resources", "network", "lease", "after its job")
    shape = [(f"`{name}`", default) for name, default in _keys(ProfileFile, "")]
    return f"""# Profiles

## Shipped

{table(heads, rows)}

## Keys of a profile file

A file may hold several documents, each one profile.  Only `name` is needed.

{table(("key", "default"), shape)}
"""


def _keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{prefix}{name}.")
        else:
            yield (
                prefix + name,
                "needed" if field.is_required() else _default(name, field.get_default(call_default_factory=True)),
            )


def _default(name: str, value: Any) -> str:
    if value is None or value in ("", (), {}):
        return ""
    if name in ("memory", "disk") or name.endswith("_max"):
        return f"`{format_bytes(int(value))}`"
    if name in ("ttl", "timeout"):
        return f"`{format_seconds(float(value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else getattr(value, 'value', value)}`"


def states() -> str:
    """The state tables."""
    parts = ["# States\n\nWhat may follow what.  [Concepts: states](../concepts/states.md) draws and explains them."]
    for title, following in (("Sandbox", SANDBOX_NEXT), ("Job", JOB_NEXT), ("Snapshot", SNAPSHOT_NEXT)):
        rows = [(f"`{state}`", ", ".join(f"`{each}`" for each in sorted(after)) or "(final)") for state, after in following.items()]  # fmt: skip
        parts.append(f"## {title}\n\n" + table(("state", "may become"), rows))
    return "\n\n".join(parts)


def proxmox_privileges() -> str:
    """What the token of a cluster is granted, from the one table of it, by version."""
    grantee = proxmox.Grantee(
        token="agentlab@pve!daemon",  # noqa: S106 - a token's id
        pool="agentlab",
        storages=("local-lvm",),
        uploads=("local",),
        templates=(9000,),
    )
    parts = [
        f"""# Privileges on Proxmox VE

What `agentlab setup proxmox` grants, and what `agentlab doctor` asks the token for.  Each row was found by taking it away.  Every entry
is given to the user **and** to its token: with privilege separation a token has what both have, and without an entry of its
own it sees empty lists instead of refusals.  Nothing is granted on `/`, and no token may read or change what is outside of these places.

There is one role for each place, so that what is granted at one is not granted at another.  A template gets only what
cloning needs: with `VM.Allocate` by an entry on the template itself, a token could hand rights on it to others.  Rows that are
optional make AgentLab better, not possible; `agentlab setup proxmox --minimal` leaves them out.

- *Uploads* must be a storage that holds files ({", ".join(f"`{each}`" for each in sorted(IMPORT_TYPES))}).  With `Datastore.Allocate` there the token may remove
  any volume of that storage: give it one of its own, or leave the privilege out, and remove old images by hand.
- With templates that you made yourself (`--template`), nothing is granted for uploads.
"""
    ]
    for version in reversed(proxmox.VERSIONS):
        parts.append(f"## Proxmox VE {version}")
        rows = [
            (
                f"`{grantee.paths(row.where)[0]}`",
                f"`{row.name}`",
                "optional" if row.optional else "needed",
                row.needed_for,
            )
            for row in proxmox.of_version(version)
        ]
        parts.append(table(("path, as an example", "privilege", "", "for"), rows))
        lines = "\n".join(script(Wanted(grantee=replace(grantee, version=version))))
        parts.append(
            f"The same as lines for a shell on a node, as `agentlab setup proxmox --print` shows them:\n\n```sh\n{lines}\n```"
        )
    roles = [(f"`{proxmox.ROLES[where]}`", f"`{where.value}`") for where in proxmox.Where]
    parts.append("## Roles\n\n" + table(("role", "place"), roles))
    return "\n\n".join(parts)


def _need(row: proxmox.Privilege) -> str:
    if row.builds:
        return "needed, unless you made the templates"
    return "optional" if row.optional else "needed"


def proxmox_kinds() -> str:
    """What Proxmox VE's texts mean, from the table that reads them."""
    tried = {Unavailable: "tried again", Refused: "not tried again", Gone: "looked for again"}
    rows = []
    for kind in Kind:
        outcome, remedy = OUTCOMES[kind]
        said = [f"`{pattern}`" for pattern, meant in TEXTS if meant is kind]
        rows.append((kind.value, " ".join(said), tried.get(outcome, "reported"), remedy))
    return table(("kind", "Proxmox VE says (expressions)", "AgentLab", "what to do"), rows)


def mermaid(following: Mapping[Any, frozenset[Any]]) -> str:
    """A state table as a drawing."""
    lines = [f"    [*] --> {next(iter(following))}"]
    for state, after in following.items():
        lines += [f"    {state} --> {each}" for each in sorted(after)] or [f"    {state} --> [*]"]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])


def _sentence(of: type) -> str:
    return " ".join((inspect.getdoc(of) or "").split())


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def main() -> int:
    """Write all of it; say what changed."""
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(path.relative_to(DOCS.parent))
    return 0


assert all_errors.DOCS == "docs/reference/errors.md"

if __name__ == "__main__":
    sys.exit(main())
