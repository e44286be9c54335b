#!/usr/bin/env bash
# Brings up libvirt on this machine, and takes down only what it brought up.
#
#   hack/libvirt.sh start     libvirtd and virtlogd answer, network `default` is active
#   hack/libvirt.sh stop      ends what `start` started; guests keep running
#   hack/libvirt.sh status    says what answers; exit 0 when a guest could be started now
#
# A libvirtd that already answers is used as it is. Where systemd is PID 1 the units of the
# distribution are used and are never stopped; else the daemons are started by hand.
#
# Records: ${VIRTSHELL_STATE_DIR:-.virtshell}/libvirt/{libvirtd,virtlogd}.pid ("pid starttime")
# and network.default (present when `start` activated the network).
set -euo pipefail
# libvirtd is in a directory that a plain `su` does not put on the path.
export PATH=$PATH:/usr/sbin:/sbin

readonly QEMU_URI=qemu:///system
readonly NETWORK=default
readonly NETWORK_XML=/usr/share/libvirt/networks/default.xml
# 60 s: a cold capability cache probes every QEMU binary (2 to 4 s each) before the first answer.
readonly READY_SECONDS=60
readonly STOP_SECONDS=30

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
records=${VIRTSHELL_STATE_DIR:-$root/.virtshell}/libvirt

step() { printf '==> %s\n' "$1" >&2; }
die() {
    printf 'error: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf 'cure:  %s\n' "$2" >&2
    exit 1
}

virsh_() { LC_ALL=C timeout 20 virsh -c "$QEMU_URI" -q "$@"; }
answers() { virsh_ uri >/dev/null 2>&1; }
systemd_is_init() { [ -d /run/systemd/system ]; }

# --- processes -----------------------------------------------------------------------------

# Start time in clock ticks: with the pid it names one process, even after pids were reused.
start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# The pid of a daemon that runs now, by the pid file the daemon itself writes.
daemon_pid() {
    local pid
    pid=$(cat "/run/$1.pid" 2>/dev/null) || return 1
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] && echo "$pid"
}

record_daemon() {
    local pid
    pid=$(daemon_pid "$1") || return 1
    echo "$pid $(start_time "$pid")" >"$records/$1.pid"
}

# The pid of a daemon that `start` started and that is still the same process.
recorded_pid() {
    local pid started
    read -r pid started 2>/dev/null <"$records/$1.pid" || return 1
    [ "$(start_time "$pid")" = "$started" ] && echo "$pid"
}

# A daemon must not keep our lock, our caller's pipes or our caller's settings.
spawn() (
    cd /
    for fd in /proc/self/fd/*; do
        fd=${fd##*/}
        [ "$fd" -le 2 ] || eval "exec $fd>&-"
    done
    exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root \
        "$@" </dev/null >/dev/null 2>>"$records/spawn.log"
)

# What a daemon said: on its way up to us, later to its own log.
log_tail() {
    local file
    for file in "$records/spawn.log" "/var/log/libvirt/$1.log"; do
        [ -s "$file" ] || continue
        printf -- '--- %s\n' "$file" >&2
        tail -n 15 "$file" >&2
        return 0
    done
}

# --- start ---------------------------------------------------------------------------------

# What udev does on a machine that has it. Without it libvirt's capability cache never
# validates and every start of a guest probes QEMU again (2 to 4 s instead of 0.4 s).
open_kvm() {
    [ -c /dev/kvm ] && getent group kvm >/dev/null || return 0
    [ "$(stat -c '%G %a' /dev/kvm)" != "kvm 660" ] || return 0
    step "/dev/kvm: group kvm, mode 660"
    chgrp kvm /dev/kvm && chmod 660 /dev/kvm
}

start_virtlogd() {
    daemon_pid virtlogd >/dev/null && return 0
    step "virtlogd"
    spawn virtlogd -d || { log_tail virtlogd; die "virtlogd does not start" "read the log above; is the package libvirt-daemon-system complete?"; }
    record_daemon virtlogd || { log_tail virtlogd; die "virtlogd ended at once" "read the log above"; }
}

# Hybrid cgroups (v1 controllers and an empty v2 tree beside them) make libvirt's LXC driver
# pick the v2 tree, which cannot hold its limits: it must not see that tree. `slave` lets
# later mounts of the machine (a container's root, say) still reach the daemon.
start_libvirtd() {
    if mountpoint -q /sys/fs/cgroup/unified; then
        step "libvirtd, without the unified cgroup"
        spawn unshare -m --propagation slave sh -c 'umount /sys/fs/cgroup/unified && exec libvirtd -d'
    else
        step "libvirtd"
        spawn libvirtd -d
    fi || { log_tail libvirtd; die "libvirtd does not start" "read the log above; \`libvirtd -v\` in the foreground says more"; }
    record_daemon libvirtd || { log_tail libvirtd; die "libvirtd ended at once" "read the log above; \`libvirtd -v\` in the foreground says more"; }
}

wait_until_answers() {
    local deadline=$((SECONDS + READY_SECONDS))
    until answers; do
        [ "$SECONDS" -lt "$deadline" ] || {
            log_tail libvirtd
            virsh_ uri >&2 || true
            die "libvirtd does not answer on $QEMU_URI after $READY_SECONDS s" \
                "read the log above; \`virsh -c $QEMU_URI uri\` shows the connection alone"
        }
        sleep 0.1
    done
}

network_active() { virsh_ net-list --name 2>/dev/null | grep -qx "$NETWORK"; }

start_network() {
    local output
    virsh_ net-info "$NETWORK" >/dev/null 2>&1 || {
        step "network $NETWORK: defined from $NETWORK_XML"
        [ -r "$NETWORK_XML" ] || die "there is no network $NETWORK and no $NETWORK_XML to make it from" "apt-get install libvirt-daemon-config-network"
        virsh_ net-define "$NETWORK_XML" >&2
    }
    virsh_ net-autostart "$NETWORK" >/dev/null
    if ! network_active; then
        step "network $NETWORK"
        # libvirtd starts autostart networks on its own when it comes up: "already active" is success.
        output=$(virsh_ net-start "$NETWORK" 2>&1) || network_active || network_refused "$output"
        touch "$records/network.$NETWORK"
    fi
    stop_spanning_tree
}

# With STP a new port forwards nothing for 4 s (the kernel's least forward delay, twice; libvirt's
# delay='0' cannot lower it), and so long a guest gets no address. No loop can go through this
# bridge: only guests are on it. Left alone when someone else activated the network.
stop_spanning_tree() {
    local bridge stp
    [ -e "$records/network.$NETWORK" ] || return 0
    bridge=$(virsh_ net-info "$NETWORK" | awk '$1 == "Bridge:" {print $2}')
    stp=/sys/class/net/$bridge/bridge/stp_state
    [ "$(cat "$stp" 2>/dev/null)" = 1 ] || return 0
    step "network $NETWORK: spanning tree off"
    echo 0 >"$stp"
}

network_refused() {
    local subnet
    subnet=$(virsh_ net-dumpxml "$NETWORK" | sed -n "s/.*<ip address='\([^']*\)'.*/\1/p" | head -n1)
    printf '%s\n' "$1" >&2
    case $1 in
        *"already in use by interface"* | *"File exists"* | *"Address already in use"* | *"create dummy"* | *"in use"*)
            ip -brief address >&2 || true
            die "network $NETWORK cannot have the address $subnet or its bridge: something on this machine has it already" \
                "give it another one: \`virsh -c $QEMU_URI net-edit $NETWORK\` (say 192.168.123.1), or remove the interface above that has it"
            ;;
        *dnsmasq*) die "network $NETWORK does not start" "apt-get install dnsmasq-base; and no other DNS server may listen on $subnet" ;;
        *iptables* | *firewall*) die "network $NETWORK does not start" "apt-get install iptables; the kernel must let this machine set NAT rules" ;;
        *) die "network $NETWORK does not start" "read libvirt's message above" ;;
    esac
}

start() {
    [ "$(id -u)" = 0 ] || die "libvirt.sh start needs root" "sudo $0 start"
    command -v virsh >/dev/null || die "virsh is missing" "apt-get install libvirt-clients libvirt-daemon-system"
    command -v libvirtd >/dev/null || die "libvirtd is missing" "apt-get install libvirt-daemon-system"
    mkdir -p "$records"
    exec 9>"$records/lock"
    flock 9
    : >"$records/spawn.log"
    open_kvm
    if systemd_is_init; then
        answers || {
            step "libvirtd, through systemd"
            systemctl enable --now virtlogd.socket libvirtd.service >&2 ||
                die "systemd cannot start libvirtd" "journalctl -u libvirtd -n 50"
        }
    else
        start_virtlogd
        answers || start_libvirtd
    fi
    wait_until_answers
    start_network
    step "libvirt answers ($(virsh_ version --daemon | sed -n 's/^Running against daemon: //p'), network $NETWORK active)"
}

# --- stop ----------------------------------------------------------------------------------

# Guests of every driver: both keep the network and virtlogd in use.
guests_running() {
    local uri
    for uri in "$QEMU_URI" lxc:///system; do
        [ -z "$(LC_ALL=C timeout 20 virsh -c "$uri" -q list --name 2>/dev/null | tr -d '[:space:]')" ] || return 0
    done
    return 1
}

stop_daemon() {
    local pid deadline=$((SECONDS + STOP_SECONDS))
    if pid=$(recorded_pid "$1"); then
        step "stop $1 ($pid)"
        kill "$pid"
        while recorded_pid "$1" >/dev/null; do
            [ "$SECONDS" -lt "$deadline" ] || die "$1 ($pid) did not end within $STOP_SECONDS s" "kill -9 $pid"
            sleep 0.1
        done
    fi
    rm -f "$records/$1.pid"
}

stop() {
    local busy=no
    [ -d "$records" ] || { step "nothing to stop"; return 0; }
    exec 9>"$records/lock"
    flock 9
    if answers && guests_running; then
        busy=yes
        step "guests are running: network $NETWORK and virtlogd stay for them"
    fi
    if [ $busy = no ] && [ -e "$records/network.$NETWORK" ]; then
        if network_active; then
            step "stop network $NETWORK"
            virsh_ net-destroy "$NETWORK" >/dev/null
        fi
        rm -f "$records/network.$NETWORK"
    fi
    stop_daemon libvirtd
    # It holds the other end of the running guests' log pipes.
    [ $busy = yes ] || stop_daemon virtlogd
    if answers; then
        step "libvirtd keeps running: it is not ours"
    fi
}

# --- status --------------------------------------------------------------------------------

status() {
    local daemon pid ok=0
    for daemon in virtlogd libvirtd; do
        if pid=$(recorded_pid "$daemon"); then
            echo "$daemon: pid $pid, started by hack/libvirt.sh"
        elif pid=$(daemon_pid "$daemon"); then
            echo "$daemon: pid $pid, not ours"
        else
            echo "$daemon: not running"
        fi
    done
    if answers; then echo "$QEMU_URI: answers"; else
        echo "$QEMU_URI: does not answer"
        ok=1
    fi
    if network_active; then echo "network $NETWORK: active"; else
        echo "network $NETWORK: not active"
        ok=1
    fi
    return $ok
}

case ${1:-} in
    start | stop | status) "$1" ;;
    *) die "usage: hack/libvirt.sh start|stop|status" ;;
esac
