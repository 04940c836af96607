#!/bin/busybox sh
# First program of the guest of `cargo xtask vm`: makes the host's files its own, on which it may
# write without changing them, and leaves the rest to vm-init.sh.
set -euo pipefail

export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
modprobe -a virtio_pci 9pnet_virtio 9p overlay

mkdir -p /host /scratch /guest
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host
mount -t tmpfs tmpfs /scratch
mkdir /scratch/changes /scratch/work
mount -t overlay -o lowerdir=/host,upperdir=/scratch/changes,workdir=/scratch/work guest /guest

# The kernel looks for modules with the program that stands at this path.
mount -t tmpfs tmpfs /guest/run
cp /bin/busybox /guest/run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe
mkdir -p /guest/lib/modules
mount -o bind "/host$RAWR_MODULES" /guest/lib/modules

umount /proc
exec switch_root /guest /bin/bash "$RAWR_WORKSPACE/scripts/vm-init.sh"
