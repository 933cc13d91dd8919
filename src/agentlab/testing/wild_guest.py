"""A real VM on a tap without AgentLab's guest program: root in it does whatever a test says.

    async with WildGuest(image, tap) as guest:
        said = await guest.run("print(open('/proc/version').read())")

It boots the image's kernel into one Python program instead of an init, which reads programs from a serial line and
answers what they printed.  The network card has the MAC it is given and no address: that is up to the programs.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from agentlab.base import process
from agentlab.templates.images import VmImage
from agentlab.testing.taps import HeldTap

BOOT_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 120.0
_LINE_BYTES_MAX = 1 << 22
_SECTOR = 512

# The image's initrd with our program in place of the system's init; what follows `--` goes to its first program.
_INIT = "/bin/busybox sed 's,/sbin/init,/usr/bin/python3 /dev/vdb,' /init >/i; exec /bin/busybox sh /i"
_AGENT = """\
import contextlib, io, json, termios, traceback, tty
line = open("/dev/ttyS1", "r+b", buffering=0)
tty.setraw(line)
kept = {}
def say(what):
    left = memoryview(json.dumps(what).encode() + b"\\n")
    while left:
        left = left[line.write(left):]
say("ready")
heard = b""
while True:
    heard += line.read(65536)
    while b"\\n" in heard:
        program, _, heard = heard.partition(b"\\n")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            try:
                exec(json.loads(program), kept)
            except Exception:
                traceback.print_exc(file=said)
        say(said.getvalue())
"""


class WildGuest:
    """The VM; an async context manager that boots and ends it."""

    def __init__(self, image: VmImage, tap: HeldTap, mac: str, *, memory_mib: int = 256) -> None:
        self._image, self._tap, self._mac, self._memory_mib = image, tap, mac, memory_mib
        self._folder = tempfile.TemporaryDirectory(prefix="al-wild-")
        self._qemu: asyncio.subprocess.Process | None = None
        self._line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> WildGuest:
        folder = Path(self._folder.name)
        agent = _AGENT.encode()
        (folder / "agent").write_bytes(agent + b"\n" * (-len(agent) % _SECTOR))
        self._qemu = await process.spawn(self._command(folder), pass_fds=(self._tap.descriptor,))
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._end)
            try:
                async with asyncio.timeout(BOOT_TIMEOUT_S):
                    await self._connect(folder / "line")
            except (TimeoutError, OSError, ValueError) as error:
                raise AssertionError(f"the guest did not start; its console:\n{_tail(folder / 'console')}") from error
            undo.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def run(self, program: str) -> str:
        """Carry out a Python program as root in the guest; names stay for the next one.  What it printed."""
        assert self._line is not None, "the guest runs within its context"
        self._line[1].write(json.dumps(program).encode() + b"\n")
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await self._line[1].drain()
            return await self._said()

    async def _connect(self, line: Path) -> None:
        while not line.exists():  # noqa: ASYNC110 - nothing tells but looking
            await asyncio.sleep(0.02)
        self._line = await asyncio.open_unix_connection(str(line), limit=_LINE_BYTES_MAX)
        assert await self._said() == "ready"

    async def _said(self) -> str:
        assert self._line is not None
        return str(json.loads(await self._line[0].readline()))

    async def _end(self) -> None:
        if self._line is not None:
            self._line[1].close()
        if self._qemu is not None and self._qemu.returncode is None:
            self._qemu.kill()
            await self._qemu.wait()
        self._folder.cleanup()

    def _command(self, folder: Path) -> list[str]:
        image, tap = self._image, f"tap,id=net0,fd={self._tap.descriptor}"
        append = f'{image.command_line} rdinit=/bin/busybox -- sh -c "{_INIT}"'
        return [
            *("qemu-system-x86_64", "-M", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", str(self._memory_mib)),
            *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", append),
            *("-drive", f"file={image.disk},format=qcow2,if=virtio,snapshot=on"),
            *("-drive", f"file={folder}/agent,format=raw,if=virtio,read-only=on"),
            *("-netdev", tap, "-device", f"virtio-net-pci,netdev=net0,mac={self._mac}"),
            *("-serial", f"file:{folder}/console", "-serial", f"unix:{folder}/line,server=on,wait=off"),
        ]


def _tail(console: Path) -> str:
    return console.read_text(errors="replace")[-4000:] if console.exists() else "(nothing)"
