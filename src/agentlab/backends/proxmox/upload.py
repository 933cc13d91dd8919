"""A file as the multipart body that Proxmox VE takes: the fields in a fixed order, the file last, its length known."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agentlab.base.tasks import in_thread

CHUNK_BYTES = 1 << 20  # all that an upload holds in memory of its file

Progress = Callable[[int, int], None]  # bytes sent of the file, bytes in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One file for a storage.  `name` is what it shall be called; Proxmox VE may change it, so look afterwards."""

    file: Path
    name: str
    content: str  # "import", "iso" or "vztmpl"
    boundary: str  # any text that the file does not contain: random
    sha256: str = ""  # checked by the node, if given

    @property
    def head(self) -> bytes:
        """What precedes the file's bytes.  ValueError for a name that cannot be written there."""
        if not self.name or any(each in self.name for each in '"\\\r\n/\0') or not self.name.isascii():
            raise ValueError(f"{self.name!r} cannot be the name of an uploaded file")
        fields = [("content", self.content)]
        if self.sha256:
            fields += [("checksum-algorithm", "sha256"), ("checksum", self.sha256)]
        parts = [
            f'--{self.boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields
        ]
        last = f'Content-Disposition: form-data; name="filename"; filename="{self.name}"'
        parts.append(f"--{self.boundary}\r\n{last}\r\nContent-Type: application/octet-stream\r\n\r\n")
        return "".join(parts).encode()

    @property
    def tail(self) -> bytes:
        """What follows them."""
        return f"\r\n--{self.boundary}--\r\n".encode()

    @property
    def content_type(self) -> str:
        """The header that announces the body."""
        return f"multipart/form-data; boundary={self.boundary}"

    def length(self, file_bytes: int) -> int:
        """Of the whole body: chunked ones are refused."""
        return len(self.head) + file_bytes + len(self.tail)

    async def stream(self, file_bytes: int, progress: Progress | None = None) -> AsyncIterator[bytes]:
        """The body.  Raises OSError if the file cannot be read, or became shorter meanwhile."""
        yield self.head
        sent = 0
        with self.file.open("rb") as source:
            while sent < file_bytes:
                chunk = await in_thread(partial(source.read, min(CHUNK_BYTES, file_bytes - sent)))
                if not chunk:
                    raise OSError(f"{self.file} became shorter while it was uploaded")
                yield chunk
                sent += len(chunk)
                if progress is not None:
                    progress(sent, file_bytes)
        yield self.tail
