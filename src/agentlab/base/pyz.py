"""The guest program as one file, the same bytes for the same sources and interpreter."""

from __future__ import annotations

import importlib.util
import io
import marshal
import zipfile
from functools import cache
from importlib.resources import files
from types import CodeType

PACKAGE = "agentlab_guest"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MAIN = f"from {PACKAGE}.__main__ import main\n\nraise SystemExit(main())\n"
_UNCHECKED_HASH = 0b01  # of a .pyc: the importer compares neither time nor content with the source
# Version 2 has no back references, whose presence depends on the history of the compiling process.
_MARSHAL_VERSION = 2


@cache
def build_guest_pyz() -> bytes:
    """A zip application that any Python ≥ 3.11 runs: `python3 -I -S guest.pyz --link …`.

    Holds each module as source and compiled: an interpreter of the builder's version starts 40 ms faster, any other
    finds the wrong magic number and takes the source.
    """
    sources = {
        f"{PACKAGE}/{entry.name}": entry.read_bytes() for entry in files(PACKAGE).iterdir() if _is_source(entry.name)
    }
    sources["__main__.py"] = _MAIN.encode()
    entries = dict(sources)
    for name, source in sources.items():
        if name != "__main__.py":  # runpy takes the source of the entry point in any case
            entries[name + "c"] = _compiled(name, source)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in sorted(entries):
            member = zipfile.ZipInfo(name, _EPOCH)
            member.external_attr = 0o644 << 16
            member.create_system = 3
            member.compress_type = zipfile.ZIP_STORED  # inflating would cost more than it saves
            archive.writestr(member, entries[name])
    return out.getvalue()


def _is_source(name: str) -> bool:
    return name.endswith(".py")


def _compiled(name: str, source: bytes) -> bytes:
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    assert isinstance(code, CodeType)
    header = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH.to_bytes(4, "little") + importlib.util.source_hash(source)
    return header + marshal.dumps(code, _MARSHAL_VERSION)
