"""This process's terminal and streams, joined to a command in a sandbox."""

from __future__ import annotations

import os
import selectors
import signal
import sys
import termios
import tty as tty_modes
from types import FrameType, TracebackType
from typing import Any

from agentlab.client.attach import Attachment
from agentlab.errors import DaemonNotRunning

READ_BYTES = 32 << 10


class Raw:
    """The terminal passes on every key while inside, and is as before afterwards."""

    def __enter__(self) -> None:
        self._before = termios.tcgetattr(sys.stdin.fileno())
        tty_modes.setraw(sys.stdin.fileno())

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._before)


def rows_and_columns() -> tuple[int, int]:
    """The terminal's size."""
    size = os.get_terminal_size(sys.stdout.fileno())
    return max(1, size.lines), max(1, size.columns)


def run(attachment: Attachment, *, tty: bool) -> int:
    """Copy both ways until the command ends; its exit status.  Interrupts are passed on as signals.

    The guest's bytes reach the terminal as they are: that is what a terminal session is.
    """
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    pending: list[int] = []

    def caught(number: int, _: FrameType | None) -> None:
        pending.append(number)
        os.write(wake_write, b"!")

    numbers = [signal.SIGWINCH] if tty else [signal.SIGINT, signal.SIGTERM]
    before: dict[int, Any] = {number: signal.signal(number, caught) for number in numbers}
    try:
        return _copy(attachment, wake_read, pending)
    except ConnectionResetError as error:
        raise DaemonNotRunning(socket="the attached session", cause=str(error)) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wake_read)
        os.close(wake_write)


def _copy(attachment: Attachment, wake: int, pending: list[int]) -> int:
    stdin: int | None = _stdin()
    watched = False
    with selectors.PollSelector() as selector:  # not epoll, which refuses files and /dev/null as standard input
        selector.register(attachment, selectors.EVENT_READ, "daemon")
        selector.register(wake, selectors.EVENT_READ, "signal")
        while True:
            wanted = stdin is not None and attachment.window > 0
            if wanted != watched:
                watched = wanted
                if stdin is not None:
                    selector.register(stdin, selectors.EVENT_READ, "input") if wanted else selector.unregister(stdin)
            ready = {"daemon"} if attachment.pending else {key.data for key, _ in selector.select()}
            if "signal" in ready:
                os.read(wake, 1024)
                _pass_on(attachment, pending)
            if "input" in ready and stdin is not None:
                data = os.read(stdin, min(READ_BYTES, attachment.window))
                if data:
                    attachment.write(data)
                else:
                    selector.unregister(stdin)
                    stdin, watched = None, False
                    attachment.close_input()
            if "daemon" in ready and (status := _print(attachment)) is not None:
                return status


def _stdin() -> int | None:
    try:
        return sys.stdin.fileno()
    except (ValueError, OSError, AttributeError):
        return None


def _pass_on(attachment: Attachment, pending: list[int]) -> None:
    while pending:
        number = pending.pop(0)
        if number == signal.SIGWINCH:
            attachment.resize(*rows_and_columns())
        else:
            attachment.signal(number)


def _print(attachment: Attachment) -> int | None:
    for piece in attachment.receive():
        if piece.kind == "exit":
            return int(piece.value)
        if piece.kind == "stdout":
            sys.stdout.buffer.write(piece.value)
            sys.stdout.buffer.flush()
        elif piece.kind == "stderr":
            sys.stderr.buffer.write(piece.value)
            sys.stderr.buffer.flush()
    return None
