#!/bin/bash
# Sends the datagrams of one leg of a session through a running relay with the kernel's packet
# generator, and counts those that arrive. docs/operations.md says where the addresses come from.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage: pktgen.sh --device DEV --dst-mac MAC --src IP:PORT --dst IP:PORT [options]
  --netns NS        network namespace of the sending device (default: the present one)
  --size BYTES      of the Ethernet frame without its check sequence (default: 200)
  --count N         packets to send, 1 to 100000000 (default: 1000000)
  --rate PPS        packets per second (default: as fast as possible)
  --limit SECONDS   ends the run after so long (default: 60)
  --sink DEV        device where packets arrive behind the relay; without it only sending is counted
  --sink-netns NS   network namespace of that device (default: the present one)
An IPv6 address is written [IP]:PORT. Exit status: 0 sent, 1 failed, 2 usage, 3 no pktgen here.
TEXT
    exit 2
}

fail() { echo "pktgen.sh: $1" >&2; exit "${2:-1}"; }

netns='' device='' mac='' src='' dst='' size=200 count=1000000 rate='' limit=60 sink='' sink_netns=''
while (($#)); do
    (($# >= 2)) || usage
    case $1 in
        --netns) netns=$2 ;; --device) device=$2 ;; --dst-mac) mac=$2 ;;
        --src) src=$2 ;; --dst) dst=$2 ;; --size) size=$2 ;; --count) count=$2 ;;
        --rate) rate=$2 ;; --limit) limit=$2 ;; --sink) sink=$2 ;; --sink-netns) sink_netns=$2 ;;
        *) usage ;;
    esac
    shift 2
done
[[ $device && $mac && $src == *:* && $dst == *:* ]] || usage
for number in "$size" "$count" "${rate:-1}" "$limit"; do
    [[ $number =~ ^[1-9][0-9]{0,8}$ ]] || fail "$number is not a number from 1 to 999999999" 2
done
((count <= 100000000)) || fail "--count $count: at most 100000000" 2
((EUID == 0)) || fail "needs root, to drive the packet generator"

# pktgen shows each namespace a directory of its own in /proc/net.
inside() { if [[ $netns ]]; then ip netns exec "$netns" "$@"; else "$@"; fi; }
at_sink() { if [[ $sink_netns ]]; then ip netns exec "$sink_netns" "$@"; else "$@"; fi; }
proc=/proc/net/pktgen

loaded=''
if ! inside test -d $proc; then
    modprobe pktgen 2>/dev/null && loaded=yes
    inside test -d $proc || fail "the running kernel, $(uname -r), has no packet generator: it was built \
without CONFIG_NET_PKTGEN, or its module pktgen is not installed. Debian's kernel (package \
linux-image-amd64) has it; \`cargo xtask vm\` runs this script's test on that one" 3
fi
inside test -d "/sys/class/net/$device" || fail "no device $device in ${netns:-this namespace}"

# pktgen tells why it refuses something only in the log of the kernel.
tell() { # FILE COMMAND
    inside sh -c 'echo "$1" > "$2"' - "$2" "$proc/$1" 2>/dev/null ||
        fail "pktgen refuses \`$2\` for $1; \`dmesg\` may say why"
}
clean_up() {
    inside sh -c "echo rem_device_all > $proc/kpktgend_0" 2>/dev/null || true
    [[ ! $loaded ]] || modprobe -r pktgen 2>/dev/null || true
}
trap clean_up EXIT

host() { local ip=${1%:*}; ip=${ip#[}; echo "${ip%]}"; }
if [[ $src == \[* ]]; then
    addresses=("src6 $(host "$src")" "dst6 $(host "$dst")")
else
    addresses=("src_min $(host "$src")" "src_max $(host "$src")" "dst_min $(host "$dst")")
fi
tell kpktgend_0 rem_device_all
tell kpktgend_0 "add_device $device"
# veth takes each buffer once: no clones, no bursts.
for command in "count $count" 'clone_skb 0' "pkt_size $size" 'delay 0' "dst_mac $mac" 'flag UDPCSUM' \
    "${addresses[@]}" "udp_src_min ${src##*:}" "udp_src_max ${src##*:}" "udp_dst_min ${dst##*:}" \
    "udp_dst_max ${dst##*:}" ${rate:+"ratep $rate"}; do
    tell "$device" "$command"
done

arrived() { at_sink cat "/sys/class/net/$sink/statistics/rx_packets"; }
[[ ! $sink ]] || before=$(arrived)
# An interrupt makes pktgen stop and keep its figures.
inside timeout --signal INT --kill-after 2 "$limit" sh -c "echo start > $proc/pgctrl" || true
result=$(inside cat "$proc/$device")
sent=$(sed -n 's/.*pkts-sofar: \([0-9]*\).*/\1/p' <<<"$result")
[[ $sent ]] && ((sent > 0)) || fail "nothing was sent: $result"
sed -n 's/^Result: OK: /took: /p; s/^ *\([0-9]*\)pps .*/packets per second: \1/p' <<<"$result"
echo "sent: $sent"
if [[ $sink ]]; then
    sleep 1 # for what is on its way
    received=$(($(arrived) - before))
    echo "received: $received (all packets that arrived at $sink meanwhile)"
    echo "lost: $((sent > received ? sent - received : 0))"
fi
