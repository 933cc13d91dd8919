"""Values as Proxmox VE takes them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab.backends.proxmox import encode
from agentlab.backends.proxmox.encode import Smbios, format_properties, parse_properties
from agentlab.base.secret import Secret

NET = "virtio=BC:24:11:14:E8:01,bridge=vmbr0,firewall=1"
DISK = "local:9000/base-9000-disk-0.qcow2/300/vm-300-disk-0.qcow2,size=3G"


def test_the_exclamation_mark_of_a_tokens_upid_is_quoted_in_a_path() -> None:
    upid = "UPID:pve1:00000129:0008EE52:6B049950:qmcreate:9001:root@pam!rec:"

    assert encode.path("nodes", "pve1", "tasks", upid, "status") == (
        "/nodes/pve1/tasks/UPID:pve1:00000129:0008EE52:6B049950:qmcreate:9001:root@pam%21rec:/status"
    )


def test_a_volume_is_one_part_of_a_path_however_many_slashes_it_has() -> None:
    assert encode.path("content", "local:import/a b.qcow2") == "/content/local:import%2Fa%20b.qcow2"


def test_a_body_is_json_with_numbers_for_booleans_and_without_what_is_absent() -> None:
    made = encode.body({"full": False, "agent": True, "name": None, "memory": 512, "command": ["sh", "-c", "a=b;c"]})

    assert json.loads(made) == {"full": 0, "agent": 1, "memory": 512, "command": ["sh", "-c", "a=b;c"]}


def test_a_body_that_the_server_would_refuse_for_its_length_is_not_sent() -> None:
    with pytest.raises(ValueError, match="524288"):
        encode.body({"description": "x" * (600 << 10)})


def test_a_secret_parameter_is_revealed_only_in_the_body() -> None:
    assert json.loads(encode.body({"password": Secret("hunter2hunter2")})) == {"password": "hunter2hunter2"}


def test_a_query_quotes_what_the_form_decoder_splits_at_and_repeats_lists() -> None:
    assert encode.query({"delete": "a;b=c&d+e", "purge": True, "x": ["1", "2"], "y": None}) == (
        "delete=a%3Bb%3Dc%26d%2Be&purge=1&x=1&x=2"
    )


def test_property_strings_are_read_in_order_and_written_back_as_they_were() -> None:
    net, disk = parse_properties(NET), parse_properties(DISK, "file")

    assert net == {"virtio": "BC:24:11:14:E8:01", "bridge": "vmbr0", "firewall": "1"}
    assert disk == {"file": "local:9000/base-9000-disk-0.qcow2/300/vm-300-disk-0.qcow2", "size": "3G"}
    assert (format_properties(net), format_properties(disk, "file")) == (NET, DISK)


def test_only_the_first_equals_sign_of_a_property_divides() -> None:
    assert parse_properties("base64=1,serial=YWI=,uuid=x")["serial"] == "YWI="


@pytest.mark.parametrize("text", ["local:1", "a=1,a=2", "a=1,,b=2"])
def test_a_property_string_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text.split(",")[-1][:1]):
        parse_properties(text)


@pytest.mark.parametrize("value", ["a,b", "", "a\nb"])
def test_a_value_that_would_become_two_properties_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="cannot be part"):
        format_properties({"serial": value})


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.from_regex(r"[^,\n\x00]+", fullmatch=True)))
def test_whatever_can_be_written_is_read_back(values: dict[str, str]) -> None:
    assert parse_properties(format_properties(values)) == values


def test_an_identity_by_smbios_fits_exactly_up_to_its_limit() -> None:
    uuid = "11111111-2222-4333-8444-555555555555"
    text = encode.format_smbios(Smbios(uuid=uuid, serial=b"x" * encode.SMBIOS_SERIAL_BYTES_MAX))

    assert len(text) <= encode.SMBIOS_CHARACTERS_MAX
    assert encode.parse_smbios(text) == Smbios(uuid=uuid, serial=b"x" * 339)
    with pytest.raises(ValueError, match="339 fit"):
        encode.format_smbios(Smbios(uuid=uuid, serial=b"x" * 340))


def test_a_serial_that_is_no_base64_is_kept_as_it_is() -> None:
    assert encode.parse_smbios("serial=plain,uuid=ABC").serial == b"plain"
    assert encode.parse_smbios("base64=1,serial=!!!").serial == b"!!!"


def test_keys_of_ssh_are_quoted_before_they_become_a_parameter() -> None:
    assert encode.ssh_keys("ssh-ed25519 AAAA+/= a@b\n") == "ssh-ed25519%20AAAA%2B%2F%3D%20a%40b%0A"


def test_a_description_is_the_same_but_for_its_last_newlines() -> None:
    assert encode.same_description("a\nb\n", "a\nb")
    assert not encode.same_description("a\nb", "a b")
