"""What a recipe's layers lack to be a machine of their own: a kernel, an init, devices, and our program's service."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Literal

from agentlab.model.ids import Digest
from agentlab.templates.disk import LABEL
from agentlab.templates.recipe import RecipeFileEntry, Step, continued
from agentlab.templates.rootfs import RESOLV_CONF, STAGE
from agentlab_guest.invitation import SERIAL

# Part of every image's key: raise it when the same template would come out as a different image.
IMAGE_BUILDER_VERSION = 1

Variant = Literal["direct", "firmware"]

KERNEL_PACKAGES: Mapping[str, str] = {"x86_64": "linux-image-cloud-amd64", "aarch64": "linux-image-cloud-arm64"}
PACKAGES = (
    "busybox-static",  # the initrd's only program
    "e2fsprogs",
    "iproute2",
    "kmod",
    "python3",  # the guest program needs it, whatever the recipe says
    "systemd-sysv",
    "udev",
    "util-linux",
)
# A cluster asks the agent for what only the inside knows, and as a rescue; udev starts it where its port is.
FIRMWARE_PACKAGES = ("grub-common", "grub-pc-bin", "qemu-guest-agent")

GUEST_PATH = "/opt/agentlab/guest.pyz"
MARKER_PATH = "/opt/agentlab/guest.json"
LINK_PATH = "/opt/agentlab/guest.sock"
LINK_TARGET = "/run/agentlab/guest.sock"
CONTROL_PORT = "org.agentlab.control"
UNIT = "agentlab-guest.service"

# IPv6 is closed by having no address,
# not by having no sockets: programs that bind `::` go on to work with IPv4.
COMMAND_LINE = (
    "rw console=ttyS0 quiet loglevel=4 panic=-1 net.ifnames=0 ipv6.disable_ipv6=1 fsck.mode=skip "
    "systemd.show_status=0 cryptomgr.notests audit=0"
)

_UNIT_TEXT = f"""\
[Unit]
Description=AgentLab guest program
Documentation=file:{GUEST_PATH}
DefaultDependencies=no
Conflicts=shutdown.target
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/bin/python3 -I -S -B {GUEST_PATH} --resident /dev/virtio-ports/{CONTROL_PORT} --invitation {SERIAL}
# It answers until the very end of a shutdown, and what it has launched lives on when it is started anew.
KillMode=process
Restart=always
RestartSec=1
Delegate=yes
StartupCPUWeight=10000
OOMScoreAdjust=-900
OOMPolicy=continue
TasksMax=infinity
LimitNOFILE=65536
StandardInput=null
# Not by way of the journal, which is not there yet; the daemon reads the console.
StandardOutput=file:/dev/console
StandardError=file:/dev/console

[Install]
WantedBy=sysinit.target
"""

_JOURNAL = """\
[Journal]
Storage=volatile
RuntimeMaxUse=8M
ForwardToSyslog=no
ForwardToWall=no
"""

_MANAGER = """\
[Manager]
DefaultTimeoutStopSec=5s
DefaultDeviceTimeoutSec=10s
StatusUnitFormat=name
"""

_SYSCTL = """\
net.ipv6.conf.all.disable_ipv6 = 1
net.ipv6.conf.default.disable_ipv6 = 1
kernel.panic = -1
kernel.dmesg_restrict = 0
"""

# Host keys are made when a clone learns who it is; until then the service has nothing to start with.
_SSH = "[Unit]\nConditionPathExists=/etc/ssh/ssh_host_ed25519_key\n"

# Of everything that udev would look for a driver for, these are what such a machine has; the rest costs two seconds.
_COLDPLUG = """\
[Service]
ExecStart=
ExecStart=-udevadm trigger --type=devices --action=add --subsystem-match=block --subsystem-match=net \
 --subsystem-match=virtio-ports
"""

_FILES = (
    RecipeFileEntry(path=f"/etc/systemd/system/{UNIT}", content=_UNIT_TEXT, mode=0o644),
    RecipeFileEntry(path="/etc/systemd/journald.conf.d/agentlab.conf", content=_JOURNAL, mode=0o644),
    RecipeFileEntry(path="/etc/systemd/system.conf.d/agentlab.conf", content=_MANAGER, mode=0o644),
    RecipeFileEntry(path="/etc/sysctl.d/60-agentlab.conf", content=_SYSCTL, mode=0o644),
    RecipeFileEntry(path="/etc/systemd/system/ssh.service.d/agentlab.conf", content=_SSH, mode=0o644),
    RecipeFileEntry(
        path="/etc/systemd/system/systemd-udev-trigger.service.d/agentlab.conf", content=_COLDPLUG, mode=0o644
    ),
)

# Slow, or without use in a machine that lives for hours, has one disk and no console, and gets its address, name,
# clock and randomness from our program.
MASKED = (
    "apt-daily-upgrade.service",
    "apt-daily-upgrade.timer",
    "apt-daily.service",
    "apt-daily.timer",
    "console-getty.service",
    "cryptsetup.target",
    "container-getty@.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "getty@.service",
    "integritysetup.target",
    "kmod-static-nodes.service",
    "logrotate.timer",
    "man-db.timer",
    "modprobe@.service",
    "proc-sys-fs-binfmt_misc.automount",
    "serial-getty@.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-boot-system-token.service",
    "systemd-firstboot.service",
    "systemd-fsck-root.service",
    "systemd-fsckd.socket",
    "systemd-initctl.socket",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-logind.service",
    "systemd-machine-id-commit.service",
    "systemd-networkd-wait-online.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-network-generator.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-pstore.service",
    "systemd-quotacheck.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-repart.service",
    "systemd-resolved.service",
    "systemd-rfkill.socket",
    "systemd-sysusers.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-udev-settle.service",
    "systemd-update-done.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "systemd-user-sessions.service",
    "veritysetup.target",
)

# Programs that systemd runs at each start to find units in places where there are none.
GENERATORS_MASKED = (
    "systemd-bless-boot-generator",
    "systemd-cryptsetup-generator",
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-rc-local-generator",
    "systemd-system-update-generator",
    "systemd-veritysetup-generator",
)

_SYSTEM = """\
for unit in {masked}; do ln -sfn /dev/null "/etc/systemd/system/$unit"; done
mkdir -p /etc/systemd/system-generators
for each in {generators}; do ln -sfn /dev/null "/etc/systemd/system-generators/$each"; done
ln -sfn /dev/null /etc/tmpfiles.d/systemd-nologin.conf
# What a boot would find out anew each time: device nodes whose use loads a module, such as /dev/net/tun.
version=$(readlink /vmlinuz); version=${{version##*/vmlinuz-}}
while read -r module node kind; do
  case $module in \\#*) continue;; esac
  case $node in */*) echo "d /dev/${{node%/*}} 0755 - - -";; esac
  echo "${{kind%%[0-9]*}}! /dev/$node 0600 - - - ${{kind#[bc]}}"
done < /usr/lib/modules/$version/modules.devname > /etc/tmpfiles.d/static-nodes.conf
grep -q '^[^#]' /etc/modules || rm -f /etc/modules-load.d/modules.conf
systemctl enable {unit} 2>/dev/null
systemctl set-default multi-user.target 2>/dev/null
install -D -m 0644 /{stage}/guest.pyz {guest}
install -D -m 0644 /{stage}/guest.json {marker}
ln -sfn {link_target} {link}
rm -f /etc/fstab /etc/machine-id /var/lib/dbus/machine-id /etc/ssh/ssh_host_* /var/lib/systemd/random-seed
: > /etc/machine-id
: > /etc/hostname
printf %s {resolv_conf} > /etc/resolv.conf
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /boot/initrd.img* /initrd.img* /root/.cache
rm -rf /var/log/journal /var/log/apt /var/lib/systemd/catalog /var/lib/initramfs-tools
find /var/log -type f -exec truncate --size=0 {{}} +
"""


def layer_steps(machine: str, variant: Variant) -> tuple[Step, ...]:
    """The layers between a template and its image: packages, which change as seldom as the recipe.

    `machine` is the processor's architecture as uname names it.  ValueError if no kernel is known for it.
    """
    if machine not in KERNEL_PACKAGES:
        raise ValueError(f"no kernel package is known for {machine}; known are {', '.join(KERNEL_PACKAGES)}")
    no_initrd = (("INITRD", "No"),)  # Debian's own takes 20 s to make, and longer than ours to boot
    steps = [Step(name="vm/packages", packages=(KERNEL_PACKAGES[machine], *PACKAGES), env=no_initrd)]
    if variant == "firmware":
        steps.append(Step(name="vm/firmware", packages=FIRMWARE_PACKAGES, env=no_initrd))
    return tuple(steps)


def own_layers(template: Digest, machine: str) -> tuple[Digest, ...]:
    """The layers that images of a template have beside it, the topmost first; none for a foreign processor."""
    if machine not in KERNEL_PACKAGES:
        return ()
    longest = layer_steps(machine, "firmware")  # the other variant's are its beginning
    return tuple(reversed(continued(template, longest)))


def command_line(variant: Variant) -> str:
    """What the kernel is told by whoever boots it."""
    if variant == "firmware":  # on a bus and with a screen of somebody else's choice
        return f"root=LABEL={LABEL} console=tty0 {COMMAND_LINE}"
    return f"root=/dev/vda {COMMAND_LINE}"


def system_files() -> tuple[RecipeFileEntry, ...]:
    """The text files that an image has on top of its layers; all owned by root."""
    return _FILES


def system_script() -> str:
    """What makes layers one sealed machine; runs in a chamber that has guest.pyz and guest.json on its stage."""
    return _SYSTEM.format(
        masked=" ".join(MASKED),
        generators=" ".join(GENERATORS_MASKED),
        unit=UNIT,
        stage=STAGE,
        guest=GUEST_PATH,
        marker=MARKER_PATH,
        link=LINK_PATH,
        link_target=LINK_TARGET,
        resolv_conf=shlex.quote(RESOLV_CONF.decode()),
    )
