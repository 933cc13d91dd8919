"""What outlives the process."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from agentlab.network import record
from agentlab.network.record import Record


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    saved = Record(subnet=IPv4Network("10.77.0.0/16"), forwarding_before="0")

    record.save(tmp_path, saved)

    assert record.load(tmp_path) == saved
    record.forget(tmp_path)
    assert record.load(tmp_path) == Record()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"subnet": "x"}', '{"forwarding_before": "rm -rf"}', "null"])
def test_a_spoilt_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / record.FILE_NAME).write_text(text)

    assert record.load(tmp_path) == Record()
