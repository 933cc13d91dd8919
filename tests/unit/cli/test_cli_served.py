"""The command line against a served API, as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.anyio
PROGRAM = [sys.executable, "-m", "agentlab.cli.main"]


async def cli(socket: Path, *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None):
    """Exit code, standard output and standard error."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, "--socket", str(socket), *arguments,
        stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ, **(env or {})},
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, err = await process.communicate(stdin)
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


async def test_a_sandbox_is_made_shown_used_and_destroyed(served):
    code, out, err = await cli(served.socket, "sandbox", "new", "--name", "one", "--ttl", "1h", "--memory", "1GiB")
    assert code == 0, err
    assert "(one) ready" in out
    assert "provision: create" in err
    code, out, _ = await cli(served.socket, "sandbox", "show", "one")
    assert "state:" in out
    assert "OPERATION" in out
    code, out, err = await cli(
        served.socket, "sandbox", "exec", "one", "sh", "-c", "cat; echo e >&2; exit 4", stdin=b"in"
    )
    assert (code, out, err) == (4, "in", "e\n")
    code, out, _ = await cli(served.socket, "sandbox", "exec", "--json", "one", "echo", "hi")
    assert (code, json.loads(out)["exit_code"]) == (0, 0)
    code, out, _ = await cli(served.socket, "sandbox", "destroy", "one")
    assert (code, out.split()[-1]) == (0, "destroyed")
    code, out, err = await cli(served.socket, "sandbox", "list")
    assert (code, out) == (0, "")
    assert "no sandboxes" in err


@pytest.mark.parametrize("verb", [("stop", "stopped"), ("pause", "paused")])
async def test_a_sandbox_is_stopped_or_paused_and_goes_on(served, verb):
    await cli(served.socket, "sandbox", "new", "--name", "one")
    assert (await cli(served.socket, "sandbox", verb[0], "one"))[1].split()[-1] == verb[1]
    back = {"stop": "start", "pause": "resume"}[verb[0]]
    assert (await cli(served.socket, "sandbox", back, "one"))[1].split()[-1] == "ready"


@pytest.mark.parametrize(
    "command",
    [
        ("sandbox", "list"), ("job", "list"), ("template", "list"), ("template", "show", "base"), ("profile", "list"),
        ("profile", "show", "yolo-ephemeral"), ("agent", "list"), ("event", "list"), ("status",), ("doctor",),
        ("whoami",), ("reload",), ("completion", "fish"), ("sandbox", "new", "--no-wait"),
        ("job", "run", "--task", "true", "--detach"),
    ],
)  # fmt: skip
async def test_json_is_one_value_on_standard_output_and_nothing_else(idle, command):
    code, out, err = await cli(idle.socket, *command, "--json")
    assert (code in (0, 9), err) == (True, "")
    assert isinstance(json.loads(out), (dict, list))
    assert out.count("\n") == 1


async def test_an_error_is_told_with_remedy_and_its_exit_code(idle):
    code, out, err = await cli(idle.socket, "sandbox", "show", "nobody")
    assert (code, out) == (4, "")
    assert err.startswith("error: There is no sandbox 'nobody'")
    assert "remedy: " in err


async def test_an_error_with_json_is_the_problem_as_json(idle):
    code, out, err = await cli(idle.socket, "sandbox", "show", "nobody", "--json")
    assert (code, out, json.loads(err)["code"]) == (4, "", "not-found")


@pytest.mark.parametrize(
    ("task", "stdin", "word"),
    [
        ("", b"", "empty"), ("-", b"\xff\xfe", "not UTF-8"), ("-", b"x" * (2 << 20), "TASK_BYTES_MAX"),
        ("@/nowhere", b"", "No such file"),
    ],
)  # fmt: skip
async def test_a_task_that_cannot_be_used_is_refused_before_anything_is_sent(idle, task, stdin, word):
    code, _, err = await cli(idle.socket, "job", "run", "--task", task, stdin=stdin)
    assert code == 2
    assert word in err
    assert (await idle.json("GET", "/v1/jobs"))[1]["items"] == []


async def test_a_variable_that_is_not_set_here_is_refused(idle):
    code, _, err = await cli(idle.socket, "job", "run", "--task", "x", "--env", "NO_SUCH_VARIABLE")
    assert (code, "NO_SUCH_VARIABLE" in err) == (2, True)


async def test_the_end_of_a_job_that_did_not_succeed_is_exit_code_20(idle):
    _, made = await idle.json("POST", "/v1/jobs", {"task": "true"})
    await idle.json("POST", f"/v1/jobs/{made['id']}/cancel")
    assert (await cli(idle.socket, "job", "wait", made["id"]))[0] == 20


async def test_an_interrupt_without_a_terminal_detaches_and_the_job_goes_on(idle):
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, "--socket", str(idle.socket), "job", "run", "--task", "true", stdin=pipe, stdout=pipe, stderr=pipe
    )
    async with asyncio.timeout(90):
        while not (await idle.json("GET", "/v1/jobs"))[1]["items"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert process.returncode == 130
    assert b"Detached" in err
    assert b"Traceback" not in err
    assert (await idle.json("GET", "/v1/jobs"))[1]["items"][0]["state"] == "queued"


async def test_logs_come_byte_for_byte_in_a_pipe(idle):
    _, made = await idle.json("POST", "/v1/jobs", {"task": "true"})
    idle.ground.outputs.append(made["id"], 0, b"\x1b[31mred\x1b[0m\r\n")
    await idle.json("POST", f"/v1/jobs/{made['id']}/cancel")
    for more in ((), ("-f",)):
        code, out, _ = await cli(idle.socket, "job", "logs", made["id"], *more)
        assert (code, out) == (0, "\x1b[31mred\x1b[0m\r\n")


async def test_a_reader_that_has_had_enough_is_no_error(idle):
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m agentlab.cli.main --socket {idle.socket} event list | true",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, err = await process.communicate()
    assert b"Traceback" not in err


async def test_ids_and_names_are_completed_by_asking_the_daemon(idle):
    await idle.json("POST", "/v1/sandboxes", {"name": "fox"})
    env = {"_AGENTLAB_COMPLETE": "bash_complete", "AGENTLAB_SOCKET": str(idle.socket), "COMP_CWORD": "3"}
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, stdout=asyncio.subprocess.PIPE, env={**os.environ, **env, "COMP_WORDS": "agentlab sandbox show f"}
    )
    out, _ = await process.communicate()
    assert out.decode().split() == ["plain,fox"]
