"""A disk that a PC's firmware boots by itself: boot sector, partition table, GRUB."""

from __future__ import annotations

import struct
from pathlib import Path

from agentlab.templates.rootfs import STAGE

SECTOR_BYTES = 512
PARTITION_BYTES = 1 << 20  # where the only partition begins; GRUB's core lies before it
OUT = "out"
_TABLE_AT, _SIGNATURE_AT = 446, 510
_LINUX, _ACTIVE = 0x83, 0x80
_NO_CHS = b"\xfe\xff\xff"  # cylinders and heads mean nothing: the address by sector counts

# GRUB's own installer wants a loop device and guesses at the machine it runs on; two of its parts are enough.
_SCRIPT = """\
install -m 0644 /{stage}/initrd /boot/agentlab-initrd
mkdir -p /boot/grub
cat > /boot/grub/grub.cfg <<'END'
serial --unit=0 --speed=115200
terminal_output console serial
echo 'Loading the kernel'
linux /vmlinuz {command_line}
initrd /boot/agentlab-initrd
echo 'Starting the kernel'
boot
END
grub-mkimage -O i386-pc -o /{stage}/{out}/core.img -p '(hd0,msdos1)/boot/grub' biosdisk part_msdos ext2 normal \\
  linux serial echo
cp /usr/lib/grub/i386-pc/boot.img /{stage}/{out}/boot.img
"""


def script(command_line: str) -> str:
    """Puts the boot loader's files into a chamber that has our initrd on its stage, and its two parts into out/."""
    return _SCRIPT.format(stage=STAGE, out=OUT, command_line=command_line)


def make_bootable(disk: Path, boot: bytes, core: bytes) -> None:
    """Write boot sector, partition table and GRUB's core before the file system at PARTITION_BYTES of a raw disk.

    ValueError if the core does not fit there, or `boot` is not a boot sector.
    """
    if SECTOR_BYTES + len(core) > PARTITION_BYTES:
        raise ValueError(f"GRUB's core has {len(core)} bytes and does not fit before the partition")
    size = disk.stat().st_size
    with disk.open("r+b") as file:
        file.write(boot_sector(boot, (size - PARTITION_BYTES) // SECTOR_BYTES))
        file.write(core)


def boot_sector(boot: bytes, sectors: int) -> bytes:
    """GRUB's boot.img with a table of one active Linux partition of this many sectors.  ValueError: not a boot.img."""
    if len(boot) != SECTOR_BYTES or boot[_SIGNATURE_AT:] != b"\x55\xaa":
        raise ValueError("GRUB's boot.img is not a boot sector")
    start = PARTITION_BYTES // SECTOR_BYTES
    entry = struct.pack("<B3sB3sII", _ACTIVE, _NO_CHS, _LINUX, _NO_CHS, start, sectors)
    return boot[:_TABLE_AT] + entry.ljust(_SIGNATURE_AT - _TABLE_AT, b"\0") + boot[_SIGNATURE_AT:]
