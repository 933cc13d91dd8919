"""`agentlabd setup`: the commands that prepare something for the daemon; `agentlab setup` becomes this program."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from agentlab.backends.proxmox.certificate import Endpoint, Trust, fingerprint
from agentlab.backends.proxmox.privileges import Grantee
from agentlab.backends.proxmox.setup import Wanted, script
from agentlab.backends.proxmox.transport import Token
from agentlab.base.clock import SystemClock
from agentlab.base.entropy import SystemEntropy
from agentlab.base.places import places
from agentlab.base.secret import Secret
from agentlab.base.text import printable
from agentlab.daemon import rootless, setup_settings
from agentlab.daemon.cluster_schema import ENDPOINT, PORT_DEFAULT
from agentlab.daemon.setup_host_network import host_network
from agentlab.daemon.setup_person import Terminal
from agentlab.daemon.setup_proxmox import Outcome, Request, set_up
from agentlab.daemon.setup_settings import Suggested
from agentlab.daemon.token_file import FILE_NAME
from agentlab.errors import Invalid, PermissionMissing
from agentlab.wire.setup import PROXMOX, PROXMOX_DOC, parameters

EXIT_LACKING = 9  # as of `agentlab doctor`: something is missing
_TEMPLATE = re.compile(r"(?P<name>[\w.-]+)=(?P<vmid>[1-9]\d{2,8})")


@click.group("setup")
def setup() -> None:
    """Prepare something for the daemon."""


def _proxmox(**options: Any) -> int:
    grantee, file = _grantee(options), _token_file(options["token_file"])
    if options["print"]:
        return _print(options, grantee, file)
    request = _request(options, grantee, file)
    outcome = asyncio.run(set_up(request, Terminal(quiet=options["json"]), SystemClock(), SystemEntropy()))
    settings = setup_settings.render(_suggested(options, request.token_file, outcome.plan.grantee, outcome.trust))
    _tell(outcome, request, settings, as_json=options["json"])
    return 0 if outcome.good else EXIT_LACKING


setup.add_command(
    click.Command(
        "proxmox",
        params=[*parameters(PROXMOX), click.Option(["--json"], is_flag=True, help="Print JSON: for programs.")],
        callback=_proxmox,
        help=PROXMOX_DOC,
    )
)


setup.add_command(host_network)


def _print(options: Mapping[str, Any], grantee: Grantee, file: Path) -> int:
    """Lines for a shell on standard output, and the settings that belong to them beside it."""
    lines = script(Wanted(grantee=grantee, minimal=options["minimal"], enable_firewall=options["enable_firewall"]))
    pins = Trust(fingerprints=frozenset(_pins(options))) if options["fingerprint"] else None
    settings = setup_settings.render(_suggested(options, file, grantee, pins))
    if options["json"]:
        click.echo(json.dumps({"lines": lines, "token_file": str(file), "settings": settings}))
        return 0
    for line in lines:
        click.echo(line)
    click.echo(f"\nPut the token into {file} (mode 0600), and this into agentlabd.yaml:\n\n{settings}", err=True)
    return 0


def _tell(outcome: Outcome, request: Request, settings: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_plain(outcome, request, settings)))
        return
    if outcome.lacks is None:
        click.echo("Nothing was changed: this was only a look.", err=True)
        return
    click.echo(f"The token {request.grantee.token} is in {request.token_file}, for the daemon's user alone.", err=True)
    if not outcome.lacks:
        click.echo("It was asked for its rights, and has all that is needed.", err=True)
    for lack in outcome.lacks:
        row = lack.privilege
        click.echo(printable(f"✗ it lacks {row.name} on {lack.path}, needed for {row.needed_for}"), err=True)
        click.echo(printable(f"    as root on a node: {lack.command}"), err=True)
    click.echo("Put this into agentlabd.yaml; then `agentlab doctor` looks at all of it:\n", err=True)
    click.echo(settings, nl=False)


def _plain(outcome: Outcome, request: Request, settings: str) -> dict[str, Any]:
    planned = outcome.plan
    return {
        "version": outcome.version,
        "nodes": list(outcome.nodes),
        "steps": [
            {"does": each.does, "command": each.command, "done": number < outcome.done}
            for number, each in enumerate(planned.steps)
        ],
        "kept": list(planned.kept),
        "findings": [
            {"name": each.name, "fatal": each.fatal, "detail": each.detail, "remedy": each.remedy}
            for each in planned.findings
        ],
        "lacking": None
        if outcome.lacks is None
        else [{"privilege": each.privilege.name, "path": each.path, "command": each.command} for each in outcome.lacks],
        "token": planned.grantee.token,
        "token_file": str(request.token_file),
        "settings": settings,
    }


def _request(options: Mapping[str, Any], grantee: Grantee, file: Path) -> Request:
    if not options["endpoint"]:
        raise Invalid(cause="--endpoint is needed, such as https://pve1.example.org:8006; or --print")
    return Request(
        endpoints=[_endpoint(each) for each in options["endpoint"]],
        trust=_trust(options),
        admin=options["admin"],
        grantee=grantee,
        token_file=file,
        templates=_templates(options["template"]),
        zone=options["zone"],
        minimal=options["minimal"],
        enable_import=options["enable_import"],
        enable_firewall=options["enable_firewall"],
        access_assured=options["i_have_access"],
        regenerate=options["regenerate"],
        force=options["force"],
        dry_run=options["dry_run"],
        yes=options["yes"],
    )


def _grantee(options: Mapping[str, Any]) -> Grantee:
    token, templates = f"{options['user']}!{options['token']}", _templates(options["template"])
    if options["pve_version"] not in ("8", "9"):
        raise Invalid(cause=f"--pve-version: {options['pve_version']} is not 8 or 9")
    try:
        Token(id=token, secret=Secret(""))
    except ValueError as error:
        raise Invalid(cause=f"--user, --token: {error}") from error
    grantee = Grantee(
        token=token,
        pool=options["pool"],
        version=int(options["pve_version"]),
        templates=tuple(templates.values()),
        storages=(options["storage"],),
        uploads=() if templates else (options["uploads"],),
        bridge=options["bridge"],
    )
    return replace(grantee, zone=options["zone"]) if options["zone"] else grantee


def _templates(given: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in given:
        match = _TEMPLATE.fullmatch(each)
        if match is None:
            raise Invalid(cause=f"--template: {each!r} is not NAME=VMID, such as base=9000")
        found[match["name"]] = int(match["vmid"])
    return found


def _endpoint(text: str) -> Endpoint:
    match = ENDPOINT.fullmatch(text)
    if match is None:
        raise Invalid(cause=f"--endpoint: {text!r} is none; write for example https://pve1.example.org:8006")
    return Endpoint(host=match["host"].strip("[]"), port=int(match["port"] or PORT_DEFAULT))


def _pins(options: Mapping[str, Any]) -> list[str]:
    try:
        return [fingerprint(each) for each in options["fingerprint"]]
    except ValueError as error:
        raise Invalid(cause=f"--fingerprint: {error}") from error


def _trust(options: Mapping[str, Any]) -> Trust | None:
    """What was given; None if a person is to look at the certificate."""
    if options["fingerprint"] and options["ca_file"]:
        raise Invalid(cause="give either --fingerprint or --ca-file")
    if options["fingerprint"]:
        return Trust(fingerprints=frozenset(_pins(options)))
    if options["ca_file"] is None:
        return None
    path = Path(options["ca_file"]).absolute()
    try:
        trust = Trust(ca_pem=path.read_text())
        trust.context()
    except ValueError as error:
        raise Invalid(cause=f"--ca-file: {path}: {error}") from error
    except OSError as error:
        raise PermissionMissing(
            path=path,
            cause=error.strerror or str(error),
            what_to_do="Name a readable copy of /etc/pve/pve-root-ca.pem.",
        ) from error
    return trust


def _token_file(given: str | None) -> Path:
    if given is not None:
        return Path(given).absolute()
    try:
        return places(os.environ, rootless.user_id()).config / FILE_NAME
    except ValueError as error:
        raise Invalid(cause=f"--token-file is needed: {error}") from error


def _suggested(options: Mapping[str, Any], file: Path, grantee: Grantee, trust: Trust | None) -> Suggested:
    return Suggested(
        endpoints=options["endpoint"],
        fingerprints=sorted(trust.fingerprints) if trust is not None else (),
        ca_file=Path(options["ca_file"]).absolute() if options["ca_file"] else None,
        token_file=file,
        grantee=grantee,
        templates=_templates(options["template"]),
        subnet=options["subnet"],
        addresses=options["addresses"],
        guest_address=options["guest_address"],
    )
