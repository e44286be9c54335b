#!/usr/bin/env bash
# `make clean`: removes everything that `make up` made, and only that: Instances with their domains and disks, what it applied, its
# processes, data and state. The built control plane and guest images stay in the cache, for they are the slow part and belong to every
# system of this user; `clean.sh --cache` (`make clean-cache`) removes those instead.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/system.sh"

# How long Instances get to shut their guests down before the domains are removed without them.
readonly DELETE_SECONDS=90

main() {
    if [[ ${1:-} == --cache ]]; then
        rm -rf "$CACHE_DIR/controlplane" "$CACHE_DIR/images"
        rmdir "$CACHE_DIR" 2>/dev/null || true
        return
    fi
    if [[ ! -d $STATE_DIR ]]; then
        say "nothing to remove: there is no $STATE_DIR"
        return
    fi
    is_root || die "make clean removes domains and $DATA_DIR, which only root may" "sudo make clean"
    with_lock "$STATE_DIR/.lock" clean
    remove_state
}

clean() {
    if cluster_answers; then
        step "Deleting Instances" delete_instances
        uses_own_cluster || step "Removing what was applied to the cluster" delete_applied
    fi
    step "Removing domains that are left" delete_domains
    remove_hosts
    step "Stopping VirtShell" bring_down
    step "Removing $DATA_DIR" remove_data_dir
}

# cluster_answers: whether the cluster of this system can be asked; our own only where it runs.
cluster_answers() {
    local cluster
    cluster=$(remembered cluster '')
    case $cluster in
        '') return 1 ;;
        KUBECONFIG=*) export KUBECONFIG=${cluster#KUBECONFIG=} ;;
        *) unset KUBECONFIG ;;
    esac
    ! uses_own_cluster || "$REPO/hack/controlplane.sh" status "$CONTROL_PLANE" >/dev/null || return 1
    use_cluster
    kubectl --request-timeout=5s get --raw /readyz >/dev/null 2>&1
}

# delete_instances: those of this host, through the API, as long as the parts that do the work run.
delete_instances() {
    local -a instances
    if is_stopped "$STATE_DIR" controller || is_stopped "$STATE_DIR" node; then
        say "    controller or node agent do not run: their domains are removed directly"
        return
    fi
    mapfile -t instances < <(kubectl_ get instances -A --field-selector "spec.host=$HOST_NAME" \
        -o 'jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name}{"\n"}{end}' | awk 'NF == 2')
    local entry
    for entry in "${instances[@]}"; do
        # shellcheck disable=SC2086 # namespace and name
        set -- $entry
        kubectl_ -n "$1" delete instance "$2" --wait=false >/dev/null
    done
    wait_until "$DELETE_SECONDS" no_instances || say "    some Instances are still there after $DELETE_SECONDS s"
}

no_instances() { [[ -z $(kubectl_ get instances -A --field-selector "spec.host=$HOST_NAME" -o name) ]]; }

# delete_applied: from a cluster of others. Definitions go only when we brought them, for with them goes every object of their kinds.
delete_applied() {
    kubectl_ -n "$NAMESPACE" delete --ignore-not-found --wait=false instance/hello-kubectl instance/hello-rest
    kubectl_ -n "$NAMESPACE" delete --ignore-not-found user/tester secret/user-tester image/debian-guest image/debian-{root,git} environment/default
    kubectl_ delete --ignore-not-found "host/$HOST_NAME" section/default "clusterrolebinding/virtshell-host-$HOST_NAME"
    kubectl_ -n "$SYSTEM_NAMESPACE" delete --ignore-not-found "serviceaccount/virtshell-host-$HOST_NAME" "lease/virtshell-host-$HOST_NAME"
    [[ -z $(remembered made-definitions '') ]] || kubectl delete --ignore-not-found --timeout=60s -k "$REPO/manifests/local"
} >/dev/null

# delete_domains: of what an unfinished deletion left. Ours are those with our metadata and a disk in this system's data directory.
delete_domains() {
    local uri domain xml
    have virsh || return 0
    [[ ! -d $DATA_DIR ]] || "$REPO/hack/libvirt.sh" start
    for uri in qemu:///system lxc:///system; do
        for domain in $(virsh -q -c "$uri" list --all --uuid 2>/dev/null); do
            xml=$(virsh -q -c "$uri" dumpxml "$domain" 2>/dev/null) || continue
            [[ $xml == *https://virtshell.io/domain/v1* && $xml == *"'$DATA_DIR/"* ]] || continue
            virsh -q -c "$uri" destroy "$domain" >/dev/null 2>&1 || true
            if [[ $uri == qemu* ]]; then
                virsh -q -c "$uri" undefine --nvram --managed-save --snapshots-metadata --checkpoints-metadata "$domain" >/dev/null
            else
                virsh -q -c "$uri" undefine "$domain" >/dev/null
            fi
        done
    done
}

# remove_hosts: those that hack/host.sh added.
remove_hosts() {
    local host
    for host in "$STATE_DIR"/hosts/*/; do
        [[ ! -d $host ]] || step "Removing the host $(basename "$host")" "$REPO/hack/host.sh" remove "$(basename "$host")"
    done
}

# remove_data_dir: only one that we made.
remove_data_dir() {
    local mount
    if [[ $(remembered made-data-dir '') != "$DATA_DIR" ]]; then
        [[ ! -d $DATA_DIR ]] || say "    $DATA_DIR was there before make up and stays"
        return
    fi
    for mount in $(findmnt -rno TARGET | grep -F "$DATA_DIR/" | sort -r); do
        umount "$mount"
    done
    rm -rf --one-file-system "$DATA_DIR"
}

# remove_state: by name, for VIRTSHELL_STATE_DIR may be a folder that holds other things too.
remove_state() {
    local name
    for name in env credentials settings controlplane libvirt logs run .lock; do
        rm -rf "${STATE_DIR:?}/$name"
    done
    for name in "${ROLES[@]}"; do
        rm -f "$STATE_DIR/$name".{token,kubeconfig}
    done
    rmdir "$STATE_DIR" 2>/dev/null || say "$STATE_DIR holds other files and stays"
}

main "$@"
