"""A small initrd of our own: modules, one static program, and a script that goes on to the real root."""

from __future__ import annotations

import lzma
import posixpath
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

INITRD_BYTES_MAX = 4 << 20  # it is read at each boot
ROOT_WAIT_S = 10  # until a VM without a root disk gives up

# What the kernel needs before udev runs: the root disk, the control port, a network interface, and randomness.
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng", "virtio_balloon")

_INIT = """\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs -o mode=0755 dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
{insmod}
root=/dev/vda
for word in $($b cat /proc/cmdline); do case $word in root=*) root=${{word#root=}};; esac; done
# A disk with a serial number is a workspace, whose label may be anything that somebody in a sandbox gave it.
labelled() {{
  for disk in /sys/block/*; do
    [ -n "$($b cat "$disk/serial" "$disk/device/vpd_pg80" 2>/dev/null | $b tr -d '\\000')" ] && continue
    for part in "$disk"/*/partition; do
      part=${{part%/partition}}; part=/dev/${{part##*/}}
      [ -b "$part" ] || continue
      # Where ext4 has its label: 120 bytes into what lies at 1024.
      label=$($b dd if="$part" bs=1 skip=1144 count=16 2>/dev/null | $b tr -d '\\000')
      [ "$label" = "$1" ] && echo "$part" && return
    done
  done
}}
tries=0
while [ $tries -lt {tries} ]; do
  case $root in LABEL=*) found=$(labelled "${{root#LABEL=}}");; *) found=$root;; esac
  [ -b "$found" ] && break
  $b usleep 10000
  tries=$((tries+1))
done
if ! $b mount -t ext4 -o rw,noatime "$found" /root; then
  echo "<2>agentlab: no root file system on $root" > /dev/kmsg
  exit 1
fi
$b mkdir -p /dev/virtio-ports
for port in /sys/class/virtio-ports/*; do
  [ -s "$port/name" ] && $b ln -s "../${{port##*/}}" "/dev/virtio-ports/$($b cat "$port/name")"
done
$b mount -o move /dev /root/dev
$b mount -o move /proc /root/proc
$b mount -o move /sys /root/sys
exec $b switch_root /root /sbin/init
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One member of an archive; `content` of a directory is empty."""

    name: str
    mode: int
    content: bytes = b""


def build_initrd(busybox: bytes, modules: Sequence[tuple[str, bytes]]) -> bytes:
    """The archive: `modules` are file names and contents in the order in which they are inserted.

    Not compressed: an emulated processor inflates slower than QEMU copies.  ValueError beyond INITRD_BYTES_MAX.
    """
    folders = [Entry(name=name, mode=stat.S_IFDIR | 0o755) for name in ("bin", "dev", "modules", "proc", "root", "sys")]
    members = [
        *folders,
        Entry(name="bin/busybox", mode=stat.S_IFREG | 0o755, content=busybox),
        Entry(name="init", mode=stat.S_IFREG | 0o755, content=init_script(name for name, _ in modules).encode()),
        *(Entry(name=f"modules/{name}", mode=stat.S_IFREG | 0o644, content=content) for name, content in modules),
    ]
    archive = newc(members)
    if len(archive) > INITRD_BYTES_MAX:
        raise ValueError(f"the initrd has {len(archive)} bytes, more than INITRD_BYTES_MAX = {INITRD_BYTES_MAX}")
    return archive


def init_script(modules: Iterable[str]) -> str:
    """The initrd's first program, a shell script; its end is the real system's init."""
    insmod = "\n".join(f"$b insmod /modules/{name}" for name in modules)
    return _INIT.format(insmod=insmod, tries=ROOT_WAIT_S * 100)


def newc(entries: Iterable[Entry]) -> bytes:
    """A cpio archive as the kernel reads it, the same bytes for the same entries.

    Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
    """
    out = bytearray()
    for number, entry in enumerate((*entries, Entry(name="TRAILER!!!", mode=0)), start=1):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += bytes(-len(out) % 4)
        out += entry.content
        out += bytes(-len(out) % 4)
    return bytes(out)


def modules_in_order(read: Callable[[str], bytes], wanted: Sequence[str] = MODULES) -> list[tuple[str, bytes]]:
    """The kernel modules `wanted` and all that they need, each after what it needs, without compression.

    `read` returns a file of /lib/modules/VERSION, which has the modules.dep that depmod wrote.  What is built into the
    kernel is passed over.  ValueError names a module that the kernel does not have.
    """
    needs = parse_dependencies(read("modules.dep").decode())
    builtin = {_stem(line) for line in read("modules.builtin").decode().splitlines()}
    by_name = {_stem(path): path for path in needs}
    order: dict[str, None] = {}

    def add(path: str) -> None:
        for each in reversed(needs[path]):
            add(each)
        order[path] = None

    for name in wanted:
        if name in by_name:
            add(by_name[name])
        elif name not in builtin:
            raise ValueError(f"the kernel has no module {name}")
    return [(_stem(path) + ".ko", _plain(path, read(path))) for path in order]


def parse_dependencies(text: str) -> Mapping[str, tuple[str, ...]]:
    """modules.dep: each module's path, and the paths of what it needs, the most basic last."""
    rows = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {path: tuple(needed.split()) for path, _, needed in rows}


def _stem(path: str) -> str:
    return posixpath.basename(path).partition(".ko")[0].replace("-", "_")


def _plain(path: str, content: bytes) -> bytes:
    return lzma.decompress(content) if path.endswith(".xz") else content
