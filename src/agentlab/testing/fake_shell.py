"""Commands that "run" in a fake sandbox: a very small interpreter, enough for the contract's tests."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, MutableMapping

from agentlab.backends.interface import Command

KILLED = 128 + 9
_USERS = {"root": "0", "nobody": "65534"}


class FakeExecution:
    """See `Execution`.  Knows echo, cat, sleep, true, false, printenv, pwd, id -u, exit, kill -N $$, and sh -c of them.

    `> FILE` and `< FILE` go to the sandbox's files; `>&2` to standard error.
    """

    def __init__(self, command: Command, files: MutableMapping[str, bytes]) -> None:
        self._command = command
        self._files = files
        self._input: asyncio.Queue[bytes] = asyncio.Queue()
        self._output: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue()
        self._input_closed = False
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self.size = (command.rows, command.columns)

    async def __aenter__(self) -> FakeExecution:
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._task = self._group.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()
        await self._group.__aexit__(None, None, None)

    def kill(self, status: int = KILLED) -> None:
        """End it at once with this status; quiet if it has ended."""
        self._end(status)
        if self._task is not None:
            self._task.cancel()

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(0)
        if self._status.done() or self._input_closed:
            raise BrokenPipeError("the program no longer reads")
        self._input.put_nowait(data)

    async def close_input(self) -> None:
        await asyncio.sleep(0)
        if not self._input_closed:
            self._input_closed = True
            self._input.put_nowait(b"")

    async def output(self) -> AsyncIterator[tuple[str, bytes]]:
        while (item := await self._output.get()) is not None:
            yield item
        self._output.put_nowait(None)

    async def wait(self) -> int:
        return await asyncio.shield(self._status)

    async def resize(self, rows: int, columns: int) -> None:
        self.size = (rows, columns)
        await asyncio.sleep(0)

    async def signal(self, number: int) -> None:
        await asyncio.sleep(0)
        self.kill(128 + number)

    def _end(self, status: int) -> None:
        if not self._status.done():
            self._status.set_result(status)
            self._output.put_nowait(None)

    async def _run(self) -> None:
        argv = list(self._command.argv)
        if argv[:2] == ["sh", "-c"] and len(argv) > 2:
            status = await self._script(argv[2])
        else:
            status = await self._words(argv)
        self._end(status)

    async def _script(self, text: str) -> int:
        status = 0
        for line in text.replace("\n", ";").split(";"):
            words = shlex.split(line.replace("$$", "self"))
            if not words:
                continue
            if words[0] == "exit":
                return int(words[1]) if len(words) > 1 else status
            status = await self._words(words)
            if self._status.done():
                break
        return status

    async def _words(self, words: list[str]) -> int:
        stream, target = "stdout", ""
        if ">&2" in words:
            stream = "stderr"
            words.remove(">&2")
        if ">" in words:
            target = words[words.index(">") + 1]
            words = words[: words.index(">")]
        produced: list[bytes] = []
        status = await self._builtin(words, produced)
        for chunk in produced:
            if target:
                self._files[target] = chunk
            elif chunk:
                shown = chunk.replace(b"\n", b"\r\n") if self._command.tty else chunk
                self._output.put_nowait(("stdout" if self._command.tty else stream, shown))
        return status

    async def _builtin(self, words: list[str], out: list[bytes]) -> int:
        match words:
            case ["echo", *rest]:
                out.append(" ".join(rest).encode() + b"\n")
            case ["cat"]:
                await self._copy_input()
            case ["cat", path]:
                out.append(self._files.get(path, b""))
                return 0 if path in self._files else 1
            case ["sleep", seconds]:
                await asyncio.sleep(float(seconds))
            case ["printenv", name]:
                out.append(self._command.env.get(name, "").encode() + b"\n")
                return 0 if name in self._command.env else 1
            case ["pwd"]:
                out.append(self._command.cwd.encode() + b"\n")
            case ["id", "-u"]:
                out.append(_USERS.get(self._command.user, self._command.user).encode() + b"\n")
            case ["kill", number, "self"]:
                self._end(128 + int(number.lstrip("-")))
            case ["true"] | ["false"]:
                return 0 if words == ["true"] else 1
            case _:
                self._output.put_nowait(("stderr", f"{words[0]}: not found\n".encode()))
                return 127
        return 0

    async def _copy_input(self) -> None:
        while chunk := await self._input.get():
            self._output.put_nowait(("stdout", chunk))
