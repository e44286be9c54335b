#!/usr/bin/env bash
# Further hosts on this machine, each with a real libvirt of its own, so that what a host suffers can be tried: a killed libvirtd, a
# power cut, a full disk.
#
#   host.sh start NAME              a host: its libvirtd, virtlogd and network `default`; nothing happens when it runs already
#   host.sh join NAME               start its node agent, which joins the cluster that KUBECONFIG names
#   host.sh exec NAME COMMAND...    run a command on it: virsh, ps, kill, hack/libvirt.sh
#   host.sh cut NAME                cut its power: every process on it ends at once; `start` brings it back with its disks
#   host.sh remove NAME             cut its power and remove its files
#   host.sh list                    say which hosts there are
#
# A host has namespaces of its own for mounts, network, processes, host name and control groups: an empty /run and its own /etc/libvirt,
# /var/{lib,cache,log}/libvirt and /srv; the rest of the file system is this machine's. Its eth0 is on a bridge with this
# machine (10.213.0.1) and the other hosts. All of it but its files goes with its first process.
#
# Needs root. Environment:
#   VIRTSHELL_STATE_DIR       default .virtshell: the hosts are in hosts/ there
#   KUBECONFIG                join: an administrator of the cluster
#   VIRTSHELL_OPERATOR        join: the program; default target/release/virtshell-operator
#   VIRTSHELL_HOST_DATA_MIB   start: make its data directory, /srv/virtshell, a file system in memory of this size
set -euo pipefail
. "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/lib.sh"
. "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/system.sh"

readonly HOSTS=$STATE_DIR/hosts
# One bridge for all hosts of this machine. 10.213.0.0/24: private, and nobody's default.
readonly BRIDGE=virtshell-hosts NET=10.213.0
readonly NETWORK_LOCK=/run/lock/virtshell-hosts
# The agent's data directory as the host sees it: at one path on all hosts, with every folder above it open to QEMU's user.
readonly DATA=/srv/virtshell
# Below the host's folder, and where the host sees it.
readonly FOLDERS=(etc:/etc/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt log:/var/log/libvirt data:"$DATA")
# What of the agent is asked from within its host.
readonly AGENT_LISTEN=127.0.0.1:10352

main() {
    local command=${1:-}
    case $command:$# in
        start:2 | join:2 | cut:2 | remove:2)
            is_root || die "host.sh $command makes namespaces, which only root may" "sudo $0 $*"
            use_host "$2"
            with_lock "$HOSTS/.$NAME.lock" "${command}_host"
            ;;
        list:1) list_hosts ;;
        .first-process:2)
            use_host "$2"
            first_process
            ;;
        exec:1 | exec:2) usage ;;
        exec:*)
            use_host "$2"
            shift 2
            in_host "$@"
            ;;
        *) usage ;;
    esac
}

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2 && exit 2; }

# use_host NAME: sets what is about this host.
use_host() {
    NAME=$1
    [[ $NAME =~ ^[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?$ ]] ||
        die "$NAME is no name for a host" "use up to 42 lower-case letters, digits and hyphens"
    DIR=$HOSTS/$NAME
    # Of the machine's network devices and control groups, so that hosts of several systems can have one name.
    ID=vs-$(printf %s "$DIR" | sha256sum | cut -c 1-8)
}

# --- Namespaces -------------------------------------------------------------------------------------------------------------------

# first_pid: prints the id, as this machine knows it, of the host's first process.
first_pid() {
    local parent
    parent=$(process_id "$DIR" host) && pgrep --parent "$parent"
}

# in_host COMMAND...: runs it on the host.
in_host() {
    local pid
    pid=$(first_pid) || die "the host $NAME does not run" "hack/host.sh start $NAME"
    enter_groups "$BASHPID"
    exec nsenter --target "$pid" --mount --uts --net --pid --cgroup --wdns="$PWD" -- "$@"
}

start_host() {
    prepare
    if ! is_running "$DIR" host; then
        rm -f "$DIR/up"
        # In a subshell, so that only the host enters its control groups.
        (enter_groups "$BASHPID" && start_process "$DIR" host unshare --mount --uts --net --pid --cgroup --fork --kill-child --mount-proc \
            "$REPO/hack/host.sh" .first-process "$NAME")
        wait_until 10 test -e "$DIR/up" || die "the host $NAME does not come up: $(tail -n 3 "$DIR/logs/host.log")" "see $DIR/logs/host.log"
    fi
    with_lock "$NETWORK_LOCK" connect
    (VIRTSHELL_STATE_DIR=$DIR in_host "$REPO/hack/libvirt.sh" start)
}

# prepare: the host's files, complete or not at all; those of an earlier start stay.
prepare() {
    local new=$HOSTS/.$NAME.new
    [[ ! -d $DIR ]] || return 0
    rm -rf "$new"
    mkdir -p "$new"/{etc,lib,cache/qemu,log,data}
    chmod 711 "$HOSTS" "$new" "$new"/{lib,cache,data}
    cp -a /etc/libvirt/. "$new/etc"
    # Another host's definitions are not ours.
    rm -rf "$new"/etc/{qemu,lxc,storage,secrets}
    # Two hosts with one UUID take each other for themselves.
    printf 'host_uuid = "%s"\n' "$(</proc/sys/kernel/random/uuid)" >>"$new/etc/libvirtd.conf"
    # libvirt's answers about this machine's emulators, which cost 2 to 4 s to find; it checks itself whether they still hold.
    [[ ! -d /var/cache/libvirt/qemu/capabilities ]] || cp -a /var/cache/libvirt/qemu/capabilities "$new/cache/qemu/"
    mv -T "$new" "$DIR"
    [[ -e $HOSTS/names ]] || echo "127.0.0.1 localhost" >"$HOSTS/names"
    grep -q " $NAME\$" "$HOSTS/names" || echo "127.0.1.1 $NAME" >>"$HOSTS/names"
}

# own_groups: prints the control groups (version 1) of the calling process as "mount point" and "group", each with our own one below it.
own_groups() {
    local _ controllers group mount
    while IFS=: read -r _ controllers group; do
        [[ -n $controllers ]] || continue
        mount=$(findmnt -n -t cgroup -o TARGET -O "$controllers" | head -n 1)
        [[ -z $mount ]] || echo "$controllers $mount ${group%/}/$ID"
    done </proc/self/cgroup
}

# enter_groups PID: puts it in control groups (version 1) of the host's own, which the control group namespace makes its root: else
# guests of one name on two hosts would share a group.
enter_groups() {
    local controllers mount group file
    while read -r controllers mount group; do
        mkdir -p "$mount$group"
        for file in cpuset.cpus cpuset.mems; do
            [[ $controllers != *cpuset* ]] || cat "$mount${group%/*}/$file" >"$mount$group/$file"
        done
        echo "$1" >"$mount$group/cgroup.procs"
    done < <(own_groups)
}

# first_process: in its namespaces. Adopts and reaps what its parents leave, as init does; when it ends, all others on the host do.
first_process() {
    local folder
    echo "$NAME" >/proc/sys/kernel/hostname
    ip link set lo up
    mount_groups
    # What this machine has in it is none of the host's, and so nothing need be made there.
    mount -t tmpfs -o mode=755 srv /srv
    for folder in "${FOLDERS[@]}"; do
        mkdir -p "${folder#*:}"
        mount --bind "$DIR/${folder%:*}" "${folder#*:}"
    done
    [[ -z ${VIRTSHELL_HOST_DATA_MIB:-} ]] || mount -t tmpfs -o "mode=711,size=${VIRTSHELL_HOST_DATA_MIB}M" data "$DATA"
    mount --bind "$HOSTS/names" /etc/hosts
    mount -t tmpfs -o mode=755 run /run
    mkdir -m 1777 /run/lock
    touch "$DIR/up"
    trap 'exit 0' TERM
    while :; do
        sleep infinity &
        wait $! || true
    done
}

# mount_groups: /sys of this network namespace, with the control groups of this control group namespace. Without version 2's, for beside
# version 1 libvirt's containers would choose it, which has no controllers then.
mount_groups() {
    local groups controllers mount _
    groups=$(own_groups)
    if [[ -z $groups ]]; then
        mkdir -p "$DIR/cgroup"
        mount --rbind /sys/fs/cgroup "$DIR/cgroup"
        umount --recursive --lazy /sys
        mount -t sysfs sysfs /sys
        mount --move "$DIR/cgroup" /sys/fs/cgroup
        return
    fi
    umount --recursive --lazy /sys
    mount -t sysfs sysfs /sys
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    while read -r controllers mount _; do
        mkdir -p "$mount"
        mount -t cgroup -o "$controllers" cgroup "$mount"
    done <<<"$groups"
}

# --- Network ----------------------------------------------------------------------------------------------------------------------

# connect: eth0 of the host, on the bridge. The device's alias says the address to whoever looks for a free one.
connect() {
    local address names n
    [[ ! -e /sys/class/net/$ID ]] || return 0
    if [[ ! -e /sys/class/net/$BRIDGE ]]; then
        ip link add "$BRIDGE" type bridge
        ip address add "$NET.1/24" dev "$BRIDGE"
        ip link set "$BRIDGE" up
    fi
    for n in {2..254}; do
        ip -o link show master "$BRIDGE" | grep -qF "alias $NET.$n " || break
    done
    address=$NET.$n
    ip link add "$ID" type veth peer name eth0 netns "$(first_pid)"
    ip link set "$ID" alias "$address " master "$BRIDGE" up
    (in_host ip link set eth0 up)
    (in_host ip address add "$address/24" dev eth0)
    # In place, for the file is mounted on the hosts.
    names=$(sed "s/^[^ ]* $NAME\$/$address $NAME/" "$HOSTS/names")
    echo "$names" >"$HOSTS/names"
}

# forward PORT: leads what hosts send to this port of the bridge to the API server on 127.0.0.1.
forward() {
    local -a rule=(PREROUTING -i "$BRIDGE" -d "$NET.1" -p tcp --dport "$1" -m comment --comment "$BRIDGE" -j DNAT --to-destination "127.0.0.1:$1")
    echo 1 >"/proc/sys/net/ipv4/conf/$BRIDGE/route_localnet"
    iptables -w -t nat -C "${rule[@]}" 2>/dev/null || iptables -w -t nat -A "${rule[@]}"
}

# disconnect: the device went with the host; the bridge, and what was led from it, goes with the last one.
disconnect() {
    local rule
    [[ ! -e /sys/class/net/$ID ]] || ip link delete "$ID" 2>/dev/null || true
    [[ -z $(ip -o link show master "$BRIDGE" 2>/dev/null) ]] || return 0
    ip link delete "$BRIDGE" 2>/dev/null || true
    iptables -w -t nat -S PREROUTING | sed -n "/--comment $BRIDGE /s/^-A //p" | while read -ra rule; do
        iptables -w -t nat -D "${rule[@]}"
    done
}

# --- The agent --------------------------------------------------------------------------------------------------------------------

join_host() {
    local operator=${VIRTSHELL_OPERATOR:-$BINARIES/virtshell-operator} server
    [[ -x $operator ]] || die "there is no program $operator" "make build, or set VIRTSHELL_OPERATOR"
    is_running "$DIR" host || die "the host $NAME does not run" "hack/host.sh start $NAME"
    use_cluster
    server=$(kubectl config view --raw --minify -o 'jsonpath={.clusters[0].cluster.server}')
    [[ ! $server =~ //127\.0\.0\.1:([0-9]+) ]] || with_lock "$NETWORK_LOCK" forward "${BASH_REMATCH[1]}"
    host_account "$NAME"
    if [[ ! -s $DIR/agent.token ]]; then
        first_token "virtshell-host-$NAME" 168h "$DIR/agent.token"
    fi
    role_kubeconfig "virtshell-host-$NAME" "$DIR/agent.token" | reachable | write_private "$DIR/agent.kubeconfig"
    # shellcheck disable=SC2016 # for the shell on the host
    (in_host bash -c '. "$1/hack/lib.sh" && shift && start_process "$@"' bash "$REPO" "$DIR" agent \
        "$operator" node --kubeconfig "$DIR/agent.kubeconfig" --token-file "$DIR/agent.token" --namespace "$SYSTEM_NAMESPACE" \
        --host-name "$NAME" --data-dir "$DATA" --allow-emulation --allow-file-images --listen "$AGENT_LISTEN")
    wait_until 30 agent_is_settled || true
    agent_serves || die "the agent of $NAME does not become ready: $(tail -n 3 "$DIR/logs/agent.log")" "see $DIR/logs/agent.log"
}

agent_serves() { (in_host curl --silent --fail --output /dev/null --max-time 2 "http://$AGENT_LISTEN/readyz"); }

# agent_is_settled: it is ready, or never will be.
agent_is_settled() {
    # shellcheck disable=SC2016 # for the shell on the host
    agent_serves || (in_host bash -c '. "$1/hack/lib.sh" && is_stopped "$2" agent' bash "$REPO" "$DIR")
}

# reachable: changes a kubeconfig so that a host finds the API server of this machine; its certificate says 127.0.0.1.
reachable() {
    jq --arg address "$NET.1" '.clusters[].cluster |= if .server | test("//127\\.0\\.0\\.1[:/]") then
        .server |= sub("127\\.0\\.0\\.1"; $address) | .["tls-server-name"] = "127.0.0.1" else . end'
}

# --- Ends -------------------------------------------------------------------------------------------------------------------------

cut_host() {
    local pid controllers mount group
    if pid=$(first_pid); then
        kill -KILL "$pid" 2>/dev/null || true
    fi
    wait_until 15 is_stopped "$DIR" host || die "processes of the host $NAME do not end" "see ps -ef"
    rm -f "$DIR/run/host"
    with_lock "$NETWORK_LOCK" disconnect
    # The kernel takes a moment to empty the groups of what was killed.
    while read -r controllers mount group; do
        wait_until 5 remove_group "$mount$group" || say "the control group $mount$group ($controllers) stays"
    done < <(own_groups)
}

remove_group() { [[ ! -d $1 ]] || find "$1" -depth -type d -exec rmdir {} + 2>/dev/null; }

remove_host() {
    cut_host
    rm -rf --one-file-system "$DIR" "$HOSTS/.$NAME.new" "$HOSTS/.$NAME.lock"
    # The last one takes the rest along.
    [[ -n $(find "$HOSTS" -mindepth 1 -maxdepth 1 -type d) ]] || rm -rf "$HOSTS"
}

list_hosts() {
    local entry
    for entry in "$HOSTS"/*/; do
        [[ -d $entry ]] || continue
        use_host "$(basename "$entry")"
        if is_running "$DIR" host; then
            echo "$NAME: runs, at $(sed -n "s/ $NAME\$//p" "$HOSTS/names")"
        else
            echo "$NAME: does not run"
        fi
    done
}

main "$@"
