#!/bin/sh
# Boots a systemd of its own: in new namespaces, over a copy-on-write view of this machine's files that is gone afterwards.
# Usage: unshare --mount --pid --uts --ipc --cgroup --fork --kill-child boot.sh <empty folder>
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
cd "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" .
cd "$1/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount --rbind /dev dev
# The machine's own services are not to start here.
rm -rf etc/systemd/system/*.wants
echo > etc/machine-id
mkdir old
pivot_root . old
umount -l /old
exec env -i container=unshare /lib/systemd/systemd --system --unit=basic.target --log-target=null --show-status=0
