"""What the command line does without a daemon."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agentlab.base.text import printable
from agentlab.cli.commands.job_run import is_url, without_credentials
from agentlab.cli.main import main
from agentlab.cli.render import Cleaner, columns


def test_a_misspelt_command_or_option_is_told_with_what_was_meant(capsys):
    assert main(["sandbx"]) == 2
    assert "Did you mean 'sandbox'" in capsys.readouterr().err
    assert main(["sandbox", "lst"]) == 2
    assert "Did you mean 'list'" in capsys.readouterr().err
    assert main(["sandbox", "list", "--stat", "x"]) == 2
    assert "--state" in capsys.readouterr().err


def test_usage_errors_are_json_where_json_is_asked_for(capsys):
    assert main(["sandbox", "new", "--ttl", "5x", "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["code"] == "request/invalid"


def test_no_daemon_is_told_with_how_to_start_one(capsys, tmp_path):
    assert main(["--socket", str(tmp_path / "s"), "status"]) == 7
    assert "agentlab up" in capsys.readouterr().err


def test_no_traceback_is_ever_shown(capsys, monkeypatch):
    monkeypatch.setattr("agentlab.cli.screen.Screen.connection", lambda _: 1 / 0)
    assert main(["status"]) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err
    assert "defect" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell, capsys):
    assert main(["completion", shell]) == 0
    assert "_AGENTLAB_COMPLETE" in capsys.readouterr().out


HOSTILE = b"a\x1b[31mred\x1b[0m \x1b]0;title\x07b\r\nc\rd \xff\xc3\xa9 \x1b]8;;http://x\x1b\\link \xe2\x80\xaeevil"


@given(some.lists(some.integers(0, len(HOSTILE)), max_size=6))
def test_hostile_output_is_cleaned_alike_however_it_is_cut(cuts):
    cleaner, found = Cleaner(), ""
    places = [0, *sorted(cuts), len(HOSTILE)]
    for place, start in enumerate(places[:-1]):
        found += cleaner.feed(HOSTILE[start : places[place + 1]])
    found += cleaner.feed(b"", final=True)
    assert found == "ared b\nc\nd \ufffdé link evil"


@given(some.lists(some.binary(max_size=30), max_size=5))
def test_no_control_character_ever_passes_the_cleaner(parts):
    cleaner = Cleaner()
    text = "".join(cleaner.feed(part) for part in parts) + cleaner.feed(b"", final=True)
    assert printable(text) == text


def test_columns_are_aligned_also_with_wide_letters():
    assert columns([("A", "B"), ("漢字", "x"), ("abc", "y")]) == ["A     B", "漢字  x", "abc   y"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://x/y", True),
        ("git@host:path", True),
        ("./x", False),
        ("/a:b", False),
        ("plain", False),
        ("a/b:c", False),
    ],
)
def test_urls_are_told_from_paths(text, expected):
    assert is_url(text) == expected


def test_credentials_in_a_url_are_not_shown():
    assert without_credentials("https://me:secret@host/x@y") == "https://host/x@y"


@pytest.mark.parametrize(("arguments", "limit_ms"), [(["--version"], 80), (["--help"], 150)])
def test_the_program_starts_within_its_cpu_budget(tmp_path: Path, arguments: list[str], limit_ms: int) -> None:
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    found = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "agentlab.cli.main", *arguments], env=env, check=True, capture_output=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000)
    assert min(found) <= limit_ms


@pytest.mark.parametrize("module", ["pydantic", "rich", "httpx2", "asyncio", "uvicorn", "yaml"])
def test_listing_imports_nothing_heavy(module: str, tmp_path: Path) -> None:
    arguments = ["--socket", str(tmp_path / "s"), "sandbox", "list", "--json"]
    code = f"import sys; from agentlab.cli.main import main; main({arguments}); assert {module!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
