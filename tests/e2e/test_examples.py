"""The shipped examples run as they are, against a real daemon."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.support import Lab, git

from agentlab.testing.daemon_process import shared_templates

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run(lab: Lab, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        env=os.environ | {"AGENTLAB_SOCKET": str(lab.daemon.socket)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def sample(folder: Path) -> Path:
    shutil.copytree(EXAMPLES / "sample", folder)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "wordtally")
    return folder


def test_run_job_repairs_the_sample_and_prints_the_patch(lab: Lab) -> None:
    repository = sample(lab.folder / "sample")

    done = run(lab, "run_job.py", str(repository), (EXAMPLES / "sample-task.sh").read_text())

    assert done.returncode == 0, done.stderr
    assert "FAIL: test_words_that_occur_equally_often" in done.stderr
    subprocess.run(["git", "-C", str(repository), "apply", "--check"], input=done.stdout, text=True, check=True)


def test_run_jobs_async_runs_one_job_on_each_repository(lab: Lab) -> None:
    first, second = lab.repository("one"), lab.repository("two")

    done = run(lab, "run_jobs_async.py", "echo more >> README", str(first), str(second))

    assert done.returncode == 0, done.stderr
    assert re.findall(r"(\w+)  \S*/(one|two)$", done.stdout, re.M) == [("succeeded", "one"), ("succeeded", "two")]


def test_use_sandbox_ends_with_the_status_of_the_command(lab: Lab) -> None:
    done = run(lab, "use_sandbox.py", "bash", "-c", "echo out; echo err >&2; exit 3")

    assert (done.returncode, done.stdout) == (3, "out\n"), done.stderr
    assert done.stderr.endswith("err\n")


def test_follow_events_prints_what_has_happened(lab: Lab) -> None:
    done = run(lab, "follow_events.py", "0", "1")

    assert done.returncode == 0, done.stderr
    assert " daemon.started daemon " in done.stdout


def test_the_demo_does_the_main_job_and_leaves_nothing_behind(short_dir: Path) -> None:
    home = short_dir / "demo"
    (home / "state").mkdir(parents=True)
    (home / "state" / "templates").symlink_to(shared_templates() / "templates")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    done = subprocess.run(
        ["bash", str(EXAMPLES / "demo.sh")],
        env=os.environ | {"DEMO_DIR": str(home), "PATH": path},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "the agent is `shell`" in done.stdout
    assert "+    return sorted(counts.items()" in done.stdout
    assert re.search(r"branch agentlab/job-\w+ at ", done.stdout)
    assert "No process, mount, network link, firewall table, control group or sandbox directory." in done.stdout


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda each: each.name)
def test_an_example_is_short(script: Path) -> None:
    assert len(script.read_text().splitlines()) < 60
