"""The attach protocol: a command's streams over one WebSocket.

The caller's first message is the text `{"type": "start", "argv": […], "env": {}, "cwd": "/", "user": null,
"tty": false, "rows": 24, "columns": 80}`; the daemon answers `{"type": "started"}` once the command runs.  Then

- a binary message is one byte of channel and then data: 0 standard input (caller to daemon), 1 standard output and
  2 standard error (daemon to caller; a terminal has only 1);
- the caller may send `{"type": "eof"}`, `{"type": "resize", "rows": n, "columns": n}` and
  `{"type": "signal", "number": n}`;
- the daemon sends `{"type": "taken", "bytes": n}` as the command takes its input: no more than STDIN_WINDOW_BYTES may
  be under way, so that a signal never waits behind input that nobody reads;
- the daemon ends with `{"type": "exit", "status": n}` or `{"type": "error", "problem": {…}}`, then closes.

Hanging up ends the command.
"""

from __future__ import annotations

import json
from typing import Any

STDIN, STDOUT, STDERR = 0, 1, 2
STDIN_WINDOW_BYTES = 1 << 20
STDIN_CHUNK_BYTES = 32 << 10


def text_of(kind: str, **values: Any) -> str:
    """A text message."""
    return json.dumps({"type": kind, **values}, separators=(",", ":"))


def binary_of(channel: int, data: bytes) -> bytes:
    """A binary message."""
    return bytes((channel,)) + data
