#!/bin/bash
# Second program of the guest of `cargo xtask vm`: runs the test programs that the host has built and
# listed, says on the console what each returned, and ends the guest.
set -euo pipefail

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run
export HOME=/root CI=true RAWR_TEST_PATIENCE=5
# Whatever goes wrong, the guest must not wait for anybody.
trap 'echo o >/proc/sysrq-trigger; sleep 60' EXIT

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t bpf bpf /sys/fs/bpf
mount -t devtmpfs dev /dev
ip link set lo up
ulimit -n 65536
# Tests that count raw frames ask for more than the default.
echo 16777216 >/proc/sys/net/core/rmem_max
cd "$RAWR_WORKSPACE"

echo "rawr-vm kernel $(uname -r) $(cut -d. -f1 /proc/uptime)"
# Lines of: name, tab, program and its arguments.
while IFS=$'\t' read -r name command; do
    echo "rawr-vm begin $name"
    status=0
    # shellcheck disable=SC2086 # the words of a line are the words of the command
    $command </dev/null 2>&1 || status=$?
    echo "rawr-vm end $name $status $(cut -d. -f1 /proc/uptime)"
done <target/vm/jobs
echo "rawr-vm done"
