#!/usr/bin/env bash
# `make tour`: breaks what VirtShell must survive, one thing after the other, and shows for each what is typed, what is expected and what
# is seen. Fails when one of them is not as expected.
#
#   tour.sh [STOP...]    only these stops; names and order: tour.sh --list
#
# Needs a running system (`make up`) and root; takes about five minutes. What is broken belongs to a host of its own, `tour`, that joins
# the system for that time (hack/host.sh): this machine's libvirtd, its guests and its disk are left alone. Everything that the tour made
# is removed at the end, also after an interruption.
# shellcheck disable=SC2016 # conditions are given in single quotes and evaluated until they hold
set -euo pipefail
. "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/lib.sh"
. "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/system.sh"
cd "$REPO"

readonly STOPS=(memory restart destroy suspend undefine redefine foreign agent libvirtd stuck checksum full)
readonly HOST=tour
# Of its disk the agent keeps 512 MiB free for guests to write into.
readonly DISK_MIB=700
# What VirtShell says within; emulated guests on busy cores need the most of it.
readonly PATIENCE=90

passed=0 failed=()

main() {
    local stop
    [[ ${1:-} != --list ]] || { printf '%s\n' "${STOPS[@]}" && return; }
    for stop in "$@"; do
        [[ " ${STOPS[*]} " == *" $stop "* ]] || die "there is no stop $stop" "choose of: ${STOPS[*]}"
    done
    is_root || die "the tour makes a host of its own, which only root may" "sudo make tour"
    [[ -r $ENV_FILE ]] || die "there is no running system in $STATE_DIR" "make up"
    # shellcheck disable=SC1090 # written by up.sh
    . "$ENV_FILE"
    kubectl_ get --raw /readyz >/dev/null 2>&1 || die "the API server does not answer" "make up"
    trap leave EXIT
    trap 'exit 130' INT TERM HUP
    arrive
    [[ $# -gt 0 ]] || set -- "${STOPS[@]}"
    for stop in "$@"; do
        stop_"$stop" || failed+=("$stop: it broke off")
    done
    trap - EXIT
    leave
    echo
    if [[ ${#failed[@]} -eq 0 ]]; then
        echo "The tour ends: all $passed outcomes were as expected."
    else
        echo "The tour ends: $passed outcomes were as expected, ${#failed[@]} were not:"
        printf '  %s\n' "${failed[@]}"
        return 1
    fi
}

# --- Telling ----------------------------------------------------------------------------------------------------------------------

title() {
    echo
    echo "== $1"
}

# type_ COMMAND: shows it, and runs it. What fails here is seen by what follows.
type_() {
    echo "   \$ $1"
    eval "$1" 2>&1 | sed '/^$/d; s/^/     /' || true
}

# expect WHAT CONDITION SEEN: waits until the command CONDITION succeeds, and says what the command SEEN prints then.
expect() {
    local started seen
    started=$(now_ms)
    echo "   expected  $1"
    if wait_until "$PATIENCE" eval "$2"; then
        seen=$(seen "$3")
        echo "   seen      $seen (after $(seconds_since "$started") s)"
        echo "   PASS"
        passed=$((passed + 1))
    else
        seen=$(seen "$3")
        echo "   seen      ${seen:-nothing} (and so it stayed for $PATIENCE s)"
        echo "   FAIL"
        failed+=("${FUNCNAME[1]#stop_}: $1")
    fi
}

# seen COMMAND: what it prints, on one line.
seen() { eval "$1" 2>&1 | xargs -r -d '\n' printf '%s ' | sed 's/[: ]*$//'; }

# --- Asking -----------------------------------------------------------------------------------------------------------------------

on_host() { hack/host.sh exec "$HOST" "$@"; }
virsh_() { on_host virsh -q -c qemu:///system "$@"; }
vsi() { kubectl_ -n "$NAMESPACE" "$@"; }

# field INSTANCE PATH
field() { vsi get vsi "$1" -o "jsonpath={$2}"; }

# says INSTANCE CONDITION: "True Running: message"; nothing for a condition of an older generation.
says() {
    vsi get vsi "$1" -o json | jq -r --arg type "$2" '.metadata.generation as $now |
        .status.conditions[]? | select(.type == $type and .observedGeneration == $now) | "\(.status) \(.reason): \(.message)"'
}

is() { [[ $(says "$1" "$2") == $3* ]]; }
is_ready() { is "$1" Ready True; }
domain() { field "$1" .status.domain.name; }
qemu() { on_host cat "/run/libvirt/qemu/$(domain "$1").pid"; }

# told INSTANCE REASON: the message of an Event.
told() { vsi get events --field-selector "involvedObject.name=$1,reason=$2" -o 'jsonpath={.items[-1:].message}'; }
was_told() { [[ -n $(told "$1" "$2") ]]; }

# MiB of memory that the running domain has now.
memory() { virsh_ dommemstat "$(domain "$1")" | awk '$1 == "actual" {print $2 / 1024}'; }

# --- The host and its guests ------------------------------------------------------------------------------------------------------

arrive() {
    title "A host of its own for the tour, with a disk of $DISK_MIB MiB"
    type_ "VIRTSHELL_HOST_DATA_MIB=$DISK_MIB hack/host.sh start $HOST"
    type_ "hack/host.sh join $HOST"
    apply -f - <<YAML
apiVersion: virtshell.io/v1alpha1
kind: Section
metadata: {name: $HOST}
spec: {description: The host of make tour}
---
apiVersion: virtshell.io/v1alpha1
kind: Environment
metadata: {name: $HOST, namespace: $NAMESPACE}
spec: {section: $HOST}
YAML
    kubectl_ patch host "$HOST" --type=merge -p "{\"spec\":{\"section\":\"$HOST\"}}" >/dev/null
    expect "its agent joins the system" '[[ $(host_says Ready) == True* ]]' 'kubectl_ get vsh '"$HOST"' --no-headers'
}

host_says() { kubectl_ get host "$HOST" -o json | jq -r --arg type "$1" '.status.conditions[]? | select(.type == $type) | "\(.status) \(.reason): \(.message)"'; }

# leave: removes what the tour made, whatever of it there is.
leave() {
    title "Removing what the tour made"
    trap '' INT TERM HUP
    vsi delete vsi --selector=virtshell.io/tour --wait=false >/dev/null || true
    wait_until 30 no_instances || true
    hack/host.sh remove "$HOST"
    # What a host that is gone cannot release is given up by hand, as an administrator would.
    abandon
    vsi delete --ignore-not-found image/tour-wrong image/tour-other environment/"$HOST" >/dev/null || true
    kubectl_ delete --ignore-not-found "host/$HOST" "section/$HOST" "clusterrolebinding/virtshell-host-$HOST" >/dev/null || true
    kubectl_ -n "$SYSTEM_NAMESPACE" delete --ignore-not-found "serviceaccount/virtshell-host-$HOST" "lease/virtshell-host-$HOST" >/dev/null || true
}

no_instances() { [[ -z $(vsi get vsi --selector=virtshell.io/tour -o name) ]]; }

abandon() {
    local name uid
    vsi get vsi --selector=virtshell.io/tour -o 'jsonpath={range .items[*]}{.metadata.name} {.metadata.uid}{"\n"}{end}' |
        while read -r name uid; do
            vsi patch vsi "$name" --type=merge -p "{\"metadata\":{\"annotations\":{\"virtshell.io/abandon\":\"$uid\"},\"finalizers\":null}}" >/dev/null || true
        done
}

# blank NAME [SPEC]: a machine with an empty disk, which costs next to nothing: its firmware finds nothing to start.
blank() { instance "$1" "blank: true, memoryMiB: 32, diskMiB: 16${2:+, $2}"; }

instance() {
    cat <<YAML
---
apiVersion: virtshell.io/v1alpha1
kind: Instance
metadata: {name: $1, namespace: $NAMESPACE, labels: {virtshell.io/tour: ""}}
spec: {environment: $HOST, driver: qemu, cpus: 1, maxCpus: 1, shutdownGraceSeconds: 0, $2}
YAML
}

# need_guest: a real guest, shared by the stops that need one.
need_guest() {
    instance tour-guest "image: debian-guest, memoryMiB: 160, diskMiB: 256" | vsi apply -f - >/dev/null
    wait_until "$PATIENCE" is tour-guest AgentConnected True || true
}

need_blank() {
    blank "$1" | vsi apply -f - >/dev/null
    wait_until "$PATIENCE" is_ready "$1" || true
}

remove() {
    vsi delete vsi "$@" --wait=false >/dev/null
    vsi wait --for=delete "${@/#/vsi/}" --timeout="${PATIENCE}s" >/dev/null || true
}

# --- The stops --------------------------------------------------------------------------------------------------------------------

stop_memory() {
    local before
    title "memory: memory changes while the guest runs"
    need_guest
    before=$(qemu tour-guest)
    type_ "kubectl -n $NAMESPACE patch vsi tour-guest --type=merge -p '{\"spec\":{\"memoryMiB\":128}}'"
    expect "the running guest has 128 MiB instead of 160, by its balloon" '[[ $(memory tour-guest) == 128 ]]' 'echo "$(memory tour-guest) MiB"'
    expect "Converged says so, nothing was restarted" "is tour-guest Converged True && [[ \$(qemu tour-guest) == $before ]]" \
        "echo \"Converged \$(says tour-guest Converged) QEMU $before, now \$(qemu tour-guest)\""
}

stop_restart() {
    local before
    title "restart: what cannot change while the guest runs waits for its restart, and says so"
    need_blank tour-blank
    before=$(qemu tour-blank)
    type_ "kubectl -n $NAMESPACE patch vsi tour-blank --type=merge -p '{\"spec\":{\"maxMemoryMiB\":64}}'"
    expect "status.restartRequired names the field" '[[ $(field tour-blank ".status.restartRequired") == *maxMemoryMiB* ]] && is tour-blank Converged False' \
        'echo "restartRequired $(field tour-blank .status.restartRequired), Converged $(says tour-blank Converged)"'
    type_ "kubectl -n $NAMESPACE patch vsi tour-blank --type=merge -p '{\"spec\":{\"restartToken\":\"tour-$before\"}}'"
    expect "one restart, by a new QEMU, and nothing is left to do" "is tour-blank Converged True && [[ \$(qemu tour-blank) != $before ]]" \
        "echo \"Converged \$(says tour-blank Converged) QEMU $before, now \$(qemu tour-blank)\""
}

stop_destroy() {
    local before
    title "destroy: the power cord behind VirtShell's back"
    need_blank tour-blank
    before=$(qemu tour-blank)
    type_ "hack/host.sh exec $HOST virsh destroy $(domain tour-blank)"
    expect "it runs again, by a new QEMU" "is_ready tour-blank && [[ \$(qemu tour-blank) != $before ]]" 'says tour-blank Ready'
    expect "an Event says why" 'was_told tour-blank DomainStopped' 'told tour-blank DomainStopped'
}

stop_suspend() {
    title "suspend: a guest that somebody suspended"
    need_blank tour-blank
    type_ "hack/host.sh exec $HOST virsh suspend $(domain tour-blank)"
    expect "an Event says so" 'was_told tour-blank DomainSuspended' 'told tour-blank DomainSuspended'
    expect "it is resumed" '[[ $(virsh_ domstate "$(domain tour-blank)") == running ]]' 'virsh_ domstate "$(domain tour-blank)"'
}

stop_undefine() {
    local before
    title "undefine: the definition of a running guest is removed"
    need_blank tour-blank
    before=$(qemu tour-blank)
    type_ "hack/host.sh exec $HOST virsh undefine $(domain tour-blank)"
    expect "an Event says so" 'was_told tour-blank DomainUndefined' 'told tour-blank DomainUndefined'
    expect "it has its definition again, and the guest ran on" \
        "[[ \$(virsh_ list --persistent --name) == *\"\$(domain tour-blank)\"* && \$(qemu tour-blank) == $before ]]" \
        "echo \"QEMU $before, now \$(qemu tour-blank)\""
}

stop_redefine() {
    local domain
    title "redefine: somebody edits the definition, as virsh edit does"
    need_blank tour-blank
    domain=$(domain tour-blank)
    type_ "hack/host.sh exec $HOST bash -c 'virsh dumpxml --inactive $domain | sed \"s/\\(emory unit=.KiB.>\\)[0-9]*/\\1999424/\" >/run/edited && virsh define /run/edited'"
    expect "an Event names the field" 'was_told tour-blank DomainEdited' 'told tour-blank DomainEdited'
    expect "the definition is put back" "! virsh_ dumpxml --inactive $domain | grep -q 999424" "virsh_ dumpxml --inactive $domain | grep -m 1 '<memory'"
}

stop_foreign() {
    local domain uuid
    title "foreign: somebody else's domain has the name that an Instance needs"
    blank tour-taken "powerState: Stopped" | vsi apply -f - >/dev/null
    wait_until "$PATIENCE" is_ready tour-taken || true
    domain=$(domain tour-taken)
    echo "   (while the agent stands still, for it would repair within milliseconds)"
    type_ "hack/host.sh exec $HOST pkill -STOP virtshell"
    type_ "hack/host.sh exec $HOST virsh undefine $domain"
    type_ "hack/host.sh exec $HOST bash -c 'virsh define <(echo \"<domain type=\\\"qemu\\\"><name>$domain</name><memory>32768</memory><os><type>hvm</type></os></domain>\")'"
    type_ "hack/host.sh exec $HOST pkill -CONT virtshell"
    uuid=$(virsh_ domuuid "$domain")
    expect "the Instance is not ready, and says which domain is in the way" 'is tour-taken Ready "False DomainNameTaken"' 'says tour-taken Ready'
    type_ "kubectl -n $NAMESPACE delete vsi tour-taken --timeout=60s"
    expect "the foreign domain is as it was, also after the Instance is gone" "[[ \$(virsh_ domuuid $domain) == $uuid ]]" "virsh_ list --all --name | grep $domain"
    virsh_ undefine "$domain" >/dev/null
}

stop_agent() {
    local twenty n before killed
    title "agent: the agent is killed in the middle of twenty creations"
    twenty=$STATE_DIR/tour.yaml
    for n in {01..20}; do
        blank "tour-many-$n" "powerState: Stopped"
    done >"$twenty"
    before=$(on_host ls /srv/virtshell/vm | wc -l)
    on_host bash -c "until [ \$(ls /srv/virtshell/vm | wc -l) -ge $((before + 6)) ]; do sleep 0.01; done; pkill -9 virtshell" &
    killed=$!
    type_ "kubectl apply -f $twenty | tail -n 1"
    wait "$killed" || true
    echo "   \$ hack/host.sh exec $HOST pkill -9 virtshell     (as soon as six of them had files)"
    echo "     $(virsh_ list --all --name | grep -c tour-many) of 20 domains were there then"
    type_ "hack/host.sh join $HOST"
    expect "all twenty are ready" '[[ $(ready_of tour-many) == 20 ]]' 'echo "$(ready_of tour-many) ready"'
    expect "there are twenty domains, and no half-made file" \
        '[[ $(virsh_ list --all --name | grep -c tour-many) == 20 && -z $(half_made) ]]' \
        'echo "$(virsh_ list --all --name | grep -c tour-many) domains, half-made: $(half_made | wc -l)"'
    rm -f "$twenty"
    remove tour-many-{01..20}
}

half_made() { on_host find /srv/virtshell -name '.tmp-*'; }

# ready_of PREFIX: how many Instances of that prefix are ready.
ready_of() {
    vsi get vsi -o json | jq --arg prefix "$1" '[.items[] | select(.metadata.name | startswith($prefix)) |
        select(any(.status.conditions[]?; .type == "Ready" and .status == "True"))] | length'
}

stop_libvirtd() {
    local before n
    title "libvirtd: libvirtd is killed while guests run and others are being made"
    need_guest
    need_blank tour-blank
    before="$(qemu tour-guest) $(qemu tour-blank)"
    for n in {1..6}; do blank "tour-load-$n"; done | vsi apply -f - >/dev/null
    echo "   (six creations have begun)"
    type_ "hack/host.sh exec $HOST bash -c 'kill -9 \$(cat /run/libvirtd.pid)'"
    expect "what cannot be asked is Unknown, not gone" 'is tour-guest Ready "Unknown HypervisorUnreachable"' 'says tour-guest Ready'
    type_ "hack/host.sh start $HOST"
    expect "all are ready, the six new ones too" '[[ $(ready_of tour-load) == 6 ]] && is_ready tour-guest && is_ready tour-blank' \
        'echo "$(ready_of tour-load) of 6 new ones; tour-guest $(says tour-guest Ready)"'
    expect "the guests that ran are the same processes" "[[ \"\$(qemu tour-guest) \$(qemu tour-blank)\" == \"$before\" ]]" \
        "echo \"QEMUs $before, now \$(qemu tour-guest) \$(qemu tour-blank)\""
    remove tour-load-{1..6}
}

stop_stuck() {
    local n pid took
    title "stuck: one QEMU of ten stands still"
    for n in {0..9}; do blank "tour-ten-$n"; done | vsi apply -f - >/dev/null
    wait_until "$PATIENCE" ten_are_ready || true
    pid=$(qemu tour-ten-0)
    type_ "hack/host.sh exec $HOST kill -STOP $pid"
    type_ "kubectl -n $NAMESPACE patch vsi tour-ten-0 --type=merge -p '{\"spec\":{\"powerState\":\"Paused\"}}'"
    took=$(now_ms)
    type_ "kubectl -n $NAMESPACE patch vsi tour-ten-1 --type=merge -p '{\"spec\":{\"powerState\":\"Stopped\"}}'"
    expect "another one is stopped as quickly as ever: below 5 s" \
        "is tour-ten-1 Ready 'True Stopped' && ((\$(now_ms) - $took < 5000))" 'says tour-ten-1 Ready'
    expect "it is shown as stuck" 'is tour-ten-0 Ready "Unknown GuestStuck"' 'says tour-ten-0 Ready'
    expect "the other nine are as they were asked to be" '[[ $(ready_of tour-ten) == 9 ]]' 'echo "$(ready_of tour-ten) ready"'
    type_ "hack/host.sh exec $HOST kill -CONT $pid"
    expect "what was asked of it is done, by the same process" "is tour-ten-0 Ready 'True Paused' && [[ \$(qemu tour-ten-0) == $pid ]]" 'says tour-ten-0 Ready'
    remove tour-ten-{0..9}
}

ten_are_ready() { [[ $(ready_of tour-ten) == 10 ]]; }

stop_checksum() {
    title "checksum: an image is not what was announced"
    image tour-wrong "$(image_url)" "$(printf '0%.0s' {1..64})"
    instance tour-wrong "image: tour-wrong, memoryMiB: 128, diskMiB: 256" | vsi apply -f - >/dev/null
    type_ "kubectl -n $NAMESPACE get image tour-wrong -o jsonpath='{.spec}{\"\\n\"}'"
    expect "no guest is made of it, and the reader is told both checksums" 'is tour-wrong ImageReady False && [[ $(says tour-wrong ImageReady) == *sha256* ]]' \
        'says tour-wrong ImageReady'
    remove tour-wrong
    vsi delete image tour-wrong >/dev/null
}

image_url() { vsi get image debian-guest -o 'jsonpath={.spec.downloadUrl}'; }

# image NAME URL [SHA256]
image() {
    local sum=${3:+", sha256: '$3'"}
    vsi apply -f - >/dev/null <<YAML
apiVersion: virtshell.io/v1alpha1
kind: Image
metadata: {name: $1, namespace: $NAMESPACE}
spec: {type: disk, downloadUrl: "$2"$sum}
YAML
}

free_mib() { on_host df --output=avail -BM /srv/virtshell | tail -n 1 | tr -dc 0-9; }

stop_full() {
    local other source domain
    title "full: the disk fills up, and then there is room again"
    need_guest
    domain=$(domain tour-guest)
    type_ "hack/host.sh exec $HOST fallocate -l $(($(free_mib) - 300))M /srv/virtshell/filler"
    expect "the host says so, and takes no new Instances" '[[ $(host_says StorageHealthy) == False* && $(host_says Schedulable) == "False NoRoom"* ]]' \
        'echo "StorageHealthy $(host_says StorageHealthy)"'
    other=$STATE_DIR/hosts/$HOST/other.qcow2
    source=$(image_url)
    qemu-img convert -c -O qcow2 "${source#file://}" "$other"
    image tour-other "file://$other"
    instance tour-other "image: tour-other, host: $HOST, memoryMiB: 128, diskMiB: 256" | vsi apply -f - >/dev/null
    expect "an Instance that asks for this host is refused, with the reason" 'is tour-other Scheduled False' 'says tour-other Scheduled'
    type_ "hack/host.sh exec $HOST fallocate -l $(($(free_mib) - 4))M /srv/virtshell/filler2"
    type_ "VIRSH='hack/host.sh exec $HOST virsh' hack/guest-exec tour-guest '(yes data | head -c 12000000 >/data/big; sync) >/dev/null 2>&1 &'"
    expect "the guest that writes is suspended by QEMU, shown as that, and not resumed into a full disk" \
        'is tour-guest Ready "False StorageFull" && [[ $(virsh_ domstate '"$domain"') == paused ]]' 'says tour-guest Ready'
    type_ "hack/host.sh exec $HOST rm /srv/virtshell/filler /srv/virtshell/filler2"
    expect "with room it goes on by itself, and so does the one that waited" 'is_ready tour-guest && is_ready tour-other' \
        'echo "tour-guest $(says tour-guest Ready) tour-other $(says tour-other Ready) StorageHealthy $(host_says StorageHealthy)"'
    expect "nothing that the guest wrote is lost" '[[ $(written) == 12000000 ]]' 'echo "$(written) bytes"'
    remove tour-other
    vsi delete image tour-other >/dev/null
}

# written: bytes of the guest's file that are what was written.
written() { VIRSH="hack/host.sh exec $HOST virsh" hack/guest-exec tour-guest 'yes data | head -c 12000000 | cmp - /data/big && wc -c </data/big'; }

main "$@"
