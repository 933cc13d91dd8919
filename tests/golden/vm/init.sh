#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs -o mode=0755 dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b insmod /modules/virtio_ring.ko
$b insmod /modules/virtio.ko
root=/dev/vda
for word in $($b cat /proc/cmdline); do case $word in root=*) root=${word#root=};; esac; done
# A disk with a serial number is a workspace, whose label may be anything that somebody in a sandbox gave it.
labelled() {
  for disk in /sys/block/*; do
    [ -n "$($b cat "$disk/serial" "$disk/device/vpd_pg80" 2>/dev/null | $b tr -d '\000')" ] && continue
    for part in "$disk"/*/partition; do
      part=${part%/partition}; part=/dev/${part##*/}
      [ -b "$part" ] || continue
      # Where ext4 has its label: 120 bytes into what lies at 1024.
      label=$($b dd if="$part" bs=1 skip=1144 count=16 2>/dev/null | $b tr -d '\000')
      [ "$label" = "$1" ] && echo "$part" && return
    done
  done
}
tries=0
while [ $tries -lt 1000 ]; do
  case $root in LABEL=*) found=$(labelled "${root#LABEL=}");; *) found=$root;; esac
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
  [ -s "$port/name" ] && $b ln -s "../${port##*/}" "/dev/virtio-ports/$($b cat "$port/name")"
done
$b mount -o move /dev /root/dev
$b mount -o move /proc /root/proc
$b mount -o move /sys /root/sys
exec $b switch_root /root /sbin/init
