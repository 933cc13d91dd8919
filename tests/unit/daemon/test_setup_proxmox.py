"""The parts of `agentlab setup proxmox` that need no cluster."""

from __future__ import annotations

import stat
from pathlib import Path

import click
import pytest

from agentlab.backends.proxmox.privileges import Grantee
from agentlab.backends.proxmox.transport import Token
from agentlab.base.secret import Secret
from agentlab.base.yaml import read_documents
from agentlab.cli.commands.setup import setup as of_client
from agentlab.daemon import token_file
from agentlab.daemon.setup_command import setup as of_daemon
from agentlab.daemon.setup_settings import Suggested, render
from agentlab.wire.setup import PROXMOX, arguments

TOKEN = Token(id="agentlab@pve!daemon", secret=Secret("s3cr3t"))


def test_both_programs_have_the_same_options() -> None:
    client, daemon = (
        {name for each in group.commands["proxmox"].params for name in each.opts} for group in (of_client, of_daemon)
    )

    assert client - daemon == {"--socket", "--no-color"}
    assert daemon - client == set()


def test_what_the_client_takes_the_daemon_is_given() -> None:
    words = [
        "--endpoint", "https://a", "--endpoint=https://b", "--pool", "p", "--storage", "local-lvm", "--yes",
        "--token-file", "x y", "--template", "base=9000",
    ]  # fmt: skip
    command = of_client.commands["proxmox"]
    given = command.make_context("proxmox", words).params

    again = arguments(PROXMOX, given)

    assert again == [
        "--endpoint=https://a", "--endpoint=https://b", "--pool=p", "--template=base=9000", "--token-file=x y", "--yes",
    ]  # fmt: skip
    assert of_daemon.commands["proxmox"].make_context("proxmox", again).params == {**given, "json": False}


def test_the_settings_say_what_is_to_be_filled_in_by_a_person() -> None:
    grantee = Grantee(token=TOKEN.id, pool='a"b', storages=("thin",), uploads=("local",))
    text = render(
        Suggested(
            endpoints=["https://pve1:8006"], fingerprints=["AB"], ca_file=None, token_file=Path("/t"), grantee=grantee,
            templates={"base": 9000},
        )
    )  # fmt: skip

    value = read_documents(text.encode(), "x")[0].value["backends"]["proxmox"]
    assert value["pool"] == 'a"b'
    assert value["templates"] == {"base": 9000}
    assert value["network"] is None
    assert "# fill in: guest_address: " in text


def test_a_token_file_holds_one_line_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "proxmox.token"

    token_file.write(path, TOKEN)

    assert path.read_text() == "agentlab@pve!daemon=s3cr3t\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token_file.read(path) == TOKEN


@pytest.mark.parametrize("text", ["", "no token", "a@b=c", "\0\xff"])
def test_a_file_that_holds_no_token_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(text.encode("latin-1"))

    assert token_file.read(path) is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--template", "base"], "is not NAME=VMID"),
        (["--endpoint", "pve1"], "--endpoint: 'pve1' is none"),
        (["--endpoint", "https://a", "--fingerprint", "AB:CD"], "64 hexadecimal digits"),
        (["--endpoint", "https://a", "--fingerprint", "0" * 64, "--ca-file", "x"], "either --fingerprint or --ca-file"),
        (["--user", "agentlab"], "is not the id of an API token"),
        (["--print", "--pve-version", "7"], "7 is not 8 or 9"),
        ([], "--endpoint is needed"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_told_before_anything_is_asked(words: list[str], told: str) -> None:
    from agentlab.errors import Invalid

    command: click.Command = of_daemon.commands["proxmox"]

    with pytest.raises(Invalid, match=told):
        command.main([*words, "--token-file", "/nowhere/token"], standalone_mode=False)
