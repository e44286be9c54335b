#!/usr/bin/env bash
# `make test`: installs what is missing, checks the sources, and runs every level of tests against the real thing: a control plane of
# its own, and this machine's libvirt. Fails when one of them fails. Needs root on Debian 12.
#
#   test.sh [ARGUMENT...]    arguments go to `cargo test --workspace`
#
# Everything a test starts lives below one temporary folder and carries VIRTSHELL_TEST_RUN in its environment. At the end, also after
# an interruption, what is left of it is removed; after an orderly end, anything left fails the run.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"

main() {
    local started result=0
    started=$(now_ms)
    is_root || die "make test starts libvirt guests, which only root may" "sudo make test"
    need_space "${CARGO_TARGET_DIR:-$REPO/target}" 8000 CARGO_TARGET_DIR
    need_space "${TMPDIR:-/tmp}" 4000 TMPDIR
    hack/packages.sh --test
    # Built before the tests, so that no test waits for it; they ask for it again and get it at once.
    hack/controlplane.sh bin >/dev/null
    hack/lxc-root.sh --debian >/dev/null
    VIRTSHELL_SCHEMATHESIS=$(hack/schemathesis.sh)
    export VIRTSHELL_SCHEMATHESIS
    hack/check.sh

    # QEMU's user must be able to reach the images in it.
    RUN=$(mktemp -d "${TMPDIR:-/tmp}/virtshell-test.XXXXXX")
    chmod 711 "$RUN"
    trap cleanup EXIT
    trap 'exit 130' INT TERM HUP
    export TMPDIR=$RUN

    step "Building VirtShell" cargo build --release --locked --quiet -p virtshell-operator -p virtshell-gateway
    step "Building the tests" cargo test --workspace --locked --quiet --no-run
    VIRTSHELL_STATE_DIR=$RUN/libvirt-state step "Starting libvirt" hack/libvirt.sh start
    say "==> Tests"
    env VIRTSHELL_TEST_RUN="$RUN" VIRTSHELL_OPERATOR="$(realpath -m "${CARGO_TARGET_DIR:-target}/release/virtshell-operator")" cargo test --workspace --locked --no-fail-fast "$@" </dev/null || result=$?

    trap - EXIT
    cleanup || { say "error: tests left behind what is listed above" && result=1; }
    if [[ $result -eq 0 ]]; then
        echo "make test: passed in $(seconds_since "$started") s"
    else
        echo "make test: FAILED after $(seconds_since "$started") s"
    fi
    return "$result"
}

# cleanup: removes everything that belongs to this run. Fails when there was more than an orderly end leaves.
cleanup() {
    local left=0 pid mount
    trap '' INT TERM HUP
    # Processes first, for an agent would start its domains again. What ends together with the tests gets a moment to do so.
    wait_until 3 no_run_processes || true
    for pid in $(run_processes); do
        say "left behind: process $pid: $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | cut -c 1-120)"
        kill -TERM "$pid" 2>/dev/null || true
        left=1
    done
    wait_until 10 no_run_processes || run_processes | xargs -r kill -KILL 2>/dev/null || true
    remove_domains || left=1
    VIRTSHELL_STATE_DIR=$RUN/libvirt-state hack/libvirt.sh stop || left=1
    for mount in $(findmnt -rno TARGET | grep -F "$RUN/" | sort -r); do
        say "left behind: mount $mount"
        umount --lazy "$mount" || true
        left=1
    done
    rm -rf --one-file-system "$RUN"
    return $left
}

# run_processes: prints the ids of those that a test of this run started.
run_processes() { grep -lzsxF "VIRTSHELL_TEST_RUN=$RUN" /proc/[0-9]*/environ 2>/dev/null | sed 's|^/proc/||; s|/environ$||'; }

no_run_processes() { [[ -z $(run_processes) ]]; }

# remove_domains: those with a disk or a root below this run's folder.
remove_domains() {
    local uri domain left=0
    for uri in qemu:///system lxc:///system; do
        for domain in $(timeout 20 virsh -q -c "$uri" list --all --uuid 2>/dev/null); do
            timeout 20 virsh -q -c "$uri" dumpxml "$domain" 2>/dev/null | grep -qF "'$RUN/" || continue
            say "left behind: domain $domain of $uri"
            timeout 20 virsh -q -c "$uri" destroy "$domain" >/dev/null 2>&1 || true
            timeout 20 virsh -q -c "$uri" undefine "$domain" >/dev/null 2>&1 || true
            left=1
        done
    done
    return $left
}

main "$@"
