#!/usr/bin/env bash
# `make up`: VirtShell on this machine, ending with two real guests, one made by kubectl and one by REST.
#
# Every step looks at what is there first, so it may be interrupted and repeated at any time; on a running system it is quick. Needs
# root on Debian 12, x86-64.
#
# Environment (besides that of hack/controlplane.sh and the ports and names in hack/system.sh):
#   KUBECONFIG            use this cluster instead of a control plane of our own
#   VIRTSHELL_STATE_DIR   default .virtshell: env, identities, logs, the control plane's data
#   VIRTSHELL_DATA_DIR    default /var/lib/virtshell: images and disks
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/system.sh"

main() {
    local started
    started=$(now_ms)
    trap 'say "interrupted: what is done stays done; make up goes on from there, make down stops what runs"; exit 130' INT TERM
    is_root || die "make up installs packages and starts libvirt, which only root may" "sudo make up"
    check_space
    with_lock "$STATE_DIR/.lock" bring_up
    summary "$(seconds_since "$started")"
}

bring_up() {
    "$REPO/hack/packages.sh"
    choose_ports
    check_cluster
    remember data-dir "$DATA_DIR"
    remember host-name "$HOST_NAME"
    step "Building VirtShell (some minutes the first time)" build
    cluster
    "$REPO/hack/libvirt.sh" start
    make_data_dir
    images
    step "Applying definitions, accounts and roles" definitions
    step "Giving each role its identity" identities
    step "Applying admission policies" apply -k "$REPO/manifests/local"
    step "Starting controller, node agent and gateway" roles
    write_env
    step "What the guests need: an environment, images, a user" objects
    step "Creating hello-kubectl with kubectl and hello-rest with a signed REST call" guests
    step "Waiting until both are ready and their agents answer" wait_for_guests
}

# --- Before anything is made ------------------------------------------------------------------------------------------------------

check_space() {
    need_space "$STATE_DIR" 1000 VIRTSHELL_STATE_DIR
    need_space "$CACHE_DIR" 1000 VIRTSHELL_CACHE
    need_space "$DATA_DIR" 2000 VIRTSHELL_DATA_DIR
    [[ -x $BINARIES/virtshell-gateway ]] || need_space "$BINARIES" 3000 CARGO_TARGET_DIR
}

# check_cluster: a cluster that the user names must answer, be new enough, and let us in; and stay the same one.
check_cluster() {
    local known answer version
    known=$(remembered cluster "$(cluster_name)")
    if [[ $known != "$(cluster_name)" ]]; then
        die "$STATE_DIR belongs to $known, not to $(cluster_name)" "set KUBECONFIG as before, or make clean, or set VIRTSHELL_STATE_DIR for a second system"
    fi
    uses_own_cluster && return
    [[ $KUBECONFIG == *:* || -r $KUBECONFIG ]] || die "KUBECONFIG=$KUBECONFIG cannot be read" "correct KUBECONFIG, or unset it: VirtShell then runs a control plane of its own"
    use_cluster
    answer=$(timeout 5 kubectl --request-timeout=5s get --raw /version 2>&1) ||
        die "the cluster of KUBECONFIG=$KUBECONFIG does not answer within 5 s${answer:+: ${answer##*$'\n'}}" "correct KUBECONFIG, or unset it: VirtShell then runs a control plane of its own"
    version=$(jq -r .gitVersion <<<"$answer")
    ! older_than "$version" v1.32.0 || die "the cluster of KUBECONFIG=$KUBECONFIG runs Kubernetes $version" "use 1.32 or newer (selectable fields of custom resources)"
    kubectl_ auth can-i create customresourcedefinitions >/dev/null 2>&1 ||
        die "KUBECONFIG=$KUBECONFIG may not create CustomResourceDefinitions" "use an administrator's kubeconfig; VirtShell's roles get accounts of their own"
}

cluster_name() { if uses_own_cluster; then echo "its own control plane"; else echo "KUBECONFIG=$KUBECONFIG"; fi; }

# --- The parts --------------------------------------------------------------------------------------------------------------------

build() {
    (cd "$REPO" && cargo build --release --locked --quiet -p virtshell-operator -p virtshell-gateway >&2) ||
        die "VirtShell does not build" "see the compiler's message above; without internet, set up a mirror of crates.io for cargo"
}

cluster() {
    if uses_own_cluster; then
        # Building it says for itself what it does and how long it takes.
        "$REPO/hack/controlplane.sh" bin >/dev/null
        step "Starting the control plane" "$REPO/hack/controlplane.sh" start "$CONTROL_PLANE"
    fi
    remember cluster "$(cluster_name)"
    use_cluster
    # Ours alone may have a namespace of our choice.
    ! uses_own_cluster || kubectl config set-context --current --namespace="$NAMESPACE" >/dev/null
}

# make_data_dir: with a mark when it is new, so that clean.sh may remove it.
make_data_dir() {
    [[ ! -d $DATA_DIR ]] || return 0
    mkdir -p "$DATA_DIR"
    chmod 711 "$DATA_DIR"
    remember made-data-dir "$DATA_DIR"
}

images() {
    GUEST_IMAGE=$("$REPO/hack/guest-image.sh")
    GUEST_ROOT=$("$REPO/hack/lxc-root.sh")
    GIT_ROOT=$("$REPO/hack/lxc-root.sh" --git)
}

# definitions: before the policies, for the API server takes up to 30 s to find a new definition that one of them names, and refuses
# what that policy is about until then: tokens.
definitions() {
    local present
    # In a cluster of others, definitions that were there before us stay when we go.
    present=$(kubectl_ get crd instances.virtshell.io --ignore-not-found -o name)
    [[ -n $present ]] || remember made-definitions yes
    apply -k "$REPO/manifests/crds"
    kubectl wait --for=condition=Established --timeout=20s -f "$REPO/manifests/crds/instances.yaml" >/dev/null
    apply -k "$REPO/manifests/namespaces"
    apply -k "$REPO/manifests/rbac"
}

# --- Identities -------------------------------------------------------------------------------------------------------------------

# identities: a kubeconfig and a token file for each role.
identities() {
    local role account duration
    host_account "$HOST_NAME"
    for role in "${ROLES[@]}"; do
        read -r account duration < <(role_account "$role")
        role_kubeconfig "$account" "$STATE_DIR/$role.token" | write_private "$STATE_DIR/$role.kubeconfig"
        token_serves "$role" || first_token "$account" "$duration" "$STATE_DIR/$role.token"
    done
}

# token_serves ROLE: whether the one it has is accepted, and has more than half of its life before it.
token_serves() {
    [[ -s $STATE_DIR/$1.token ]] &&
        jq -eR 'split(".")[1] | gsub("-"; "+") | gsub("_"; "/") | @base64d | fromjson | .exp - now > now - .iat' "$STATE_DIR/$1.token" &&
        kubectl_ --kubeconfig "$STATE_DIR/$1.kubeconfig" auth whoami
} >/dev/null 2>&1

# --- Roles ------------------------------------------------------------------------------------------------------------------------

roles() {
    local role
    for role in "${ROLES[@]}"; do
        role_command "$role"
        start_process "$STATE_DIR" "$role" "${COMMAND[@]}"
    done
    for role in "${ROLES[@]}"; do
        role_command "$role"
        wait_until 30 role_is_settled "$role" "$LISTEN" || true
        is_ready "$LISTEN" || give_up "$role"
    done
}

is_ready() { curl --silent --fail --output /dev/null --max-time 2 "http://$1/readyz"; }

# role_is_settled ROLE ADDRESS: it is ready, or never will be.
role_is_settled() { is_ready "$2" || is_stopped "$STATE_DIR" "$1"; }

give_up() {
    say "The last lines of $STATE_DIR/logs/$1.log:"
    tail -n 15 "$STATE_DIR/logs/$1.log" >&2
    say "/readyz says: $(curl --silent --max-time 2 "http://$LISTEN/readyz")"
    die "the $1 did not become ready" "the lines above say why; make up tries again"
}

# --- Objects ----------------------------------------------------------------------------------------------------------------------

# objects: what a user would make once. The host joins the section that the environment is made of, unless it is in another.
objects() {
    apply -f - <<YAML
apiVersion: virtshell.io/v1alpha1
kind: Section
metadata: {name: default}
spec: {description: This machine}
---
apiVersion: virtshell.io/v1alpha1
kind: Environment
metadata: {name: default, namespace: $NAMESPACE}
spec: {section: default}
---
apiVersion: virtshell.io/v1alpha1
kind: Image
metadata: {name: debian-guest, namespace: $NAMESPACE}
spec: {type: disk, downloadUrl: "file://$GUEST_IMAGE", details: "Debian's kernel, busybox and the QEMU guest agent"}
---
apiVersion: virtshell.io/v1alpha1
kind: Image
metadata: {name: debian-root, namespace: $NAMESPACE}
spec: {type: lxc-container, downloadUrl: "file://$GUEST_ROOT", details: A small root file system for system containers}
---
apiVersion: virtshell.io/v1alpha1
kind: Image
metadata: {name: debian-git, namespace: $NAMESPACE}
spec: {type: lxc-container, downloadUrl: "file://$GIT_ROOT", details: "The same with Git, and a repository to build from"}
---
apiVersion: v1
kind: Secret
metadata: {name: user-tester, namespace: $NAMESPACE, labels: {virtshell.io/credentials: "true"}}
stringData: {accessKeyId: "$VIRTSHELL_ACCESS_KEY_ID", secretAccessKey: "$VIRTSHELL_SECRET_ACCESS_KEY"}
---
apiVersion: virtshell.io/v1alpha1
kind: User
metadata: {name: tester, namespace: $NAMESPACE}
spec: {type: system, login: tester, credentialsSecret: user-tester}
YAML
    kubectl wait --for=create --timeout=20s "host/$HOST_NAME" >/dev/null
    if [[ -z $(kubectl_ get host "$HOST_NAME" -o 'jsonpath={.spec.section}') ]]; then
        kubectl_ patch host "$HOST_NAME" --type=merge -p '{"spec":{"section":"default"}}' >/dev/null
    fi
    kubectl wait --for=condition=Ready --timeout=30s "host/$HOST_NAME" >/dev/null ||
        die "the host $HOST_NAME does not become Ready" "see kubectl describe host $HOST_NAME and $STATE_DIR/logs/node.log"
}

# write_env: what a shell needs to use the system; the user's keys are made once.
write_env() {
    local programs
    if [[ ! -s $CREDENTIALS ]]; then
        printf 'export VIRTSHELL_ACCESS_KEY_ID=%s\nexport VIRTSHELL_SECRET_ACCESS_KEY=%s\n' \
            "$(openssl rand -hex 10 | tr a-f A-F)" "$(openssl rand -base64 30 | tr +/ _-)" | write_private "$CREDENTIALS"
    fi
    # shellcheck disable=SC1090 # written above
    . "$CREDENTIALS"
    programs=$(dirname "$(command -v kubectl)")
    {
        echo "# To be sourced: . ${ENV_FILE@Q}"
        echo "export KUBECONFIG=${KUBECONFIG@Q}"
        echo "export VIRTSHELL_STATE_DIR=${STATE_DIR@Q}"
        echo "export VIRTSHELL_URL=http://127.0.0.1:$GATEWAY_PORT"
        echo "export VIRTSHELL_ROOT_URL=http://127.0.0.1:$ROOT_PORT"
        cat "$CREDENTIALS"
        # The kubectl that goes with the control plane.
        echo "case :\$PATH: in *:${programs@Q}:*) ;; *) PATH=${programs@Q}:\$PATH ;; esac"
    } | write_private "$ENV_FILE"
}

# --- The guests -------------------------------------------------------------------------------------------------------------------

guests() {
    apply -n "$NAMESPACE" -f "$REPO/manifests/samples/hello.yaml"
    wait_until 15 rest_guest || die "the gateway did not create hello-rest: $(create_rest_guest 2>&1)" "see $STATE_DIR/logs/gateway.log"
}

# rest_guest: it is there, or has just been made. The gateway may know the host a moment later than we do.
rest_guest() { vscurl GET /virtshell/api/v1/instances/hello-rest >/dev/null 2>&1 || create_rest_guest >/dev/null 2>&1; }

create_rest_guest() {
    vscurl POST /virtshell/api/v1/instances \
        '{"name": "hello-rest", "image": "debian-guest", "driver": "kvm", "cpus": 1, "memory": 256, "hdsize": "1GB"}'
}

# vscurl ARGUMENT...: with this system's address and keys, whatever the caller's shell has.
vscurl() (
    # shellcheck disable=SC1090 # written by write_env
    . "$ENV_FILE"
    exec "$REPO/hack/vscurl" "$@"
)

wait_for_guests() {
    local name
    # One that its user has stopped is well as it is.
    for name in hello-kubectl hello-rest; do
        case $(kubectl_ -n "$NAMESPACE" get instance "$name" -o 'jsonpath={.spec.powerState}') in
            Stopped | Paused) say "    $name was stopped by its user and stays so" ;;
            *) wait_for_guest "$name" Ready 120 && wait_for_guest "$name" AgentConnected 120 && wait_for_address "$name" ;;
        esac
    done
}

wait_for_guest() {
    kubectl -n "$NAMESPACE" wait --for="condition=$2" --timeout="$3s" "instance/$1" >/dev/null 2>&1 && return
    kubectl_ -n "$NAMESPACE" get instances -o wide >&2
    kubectl_ -n "$NAMESPACE" get instance "$1" -o json |
        jq -r '.status | "phase \(.phase): \(.message)", (.conditions[]? | "\(.type)=\(.status) \(.reason): \(.message)")' >&2
    die "$1 did not become $2 within $3 s" "the conditions above say what is missing; more is in $STATE_DIR/logs/node.log; make up waits again"
}

# wait_for_address NAME: the agent tells it a moment after it answers first; a guest without one is still a guest.
wait_for_address() { wait_until 10 has_address "$1" || say "    $1 has no address yet"; }

has_address() { [[ -n $(kubectl_ -n "$NAMESPACE" get instance "$1" -o 'jsonpath={.status.addresses.ipv4[0]}') ]]; }

# --- Words ------------------------------------------------------------------------------------------------------------------------

summary() {
    local env=$ENV_FILE
    [[ $PWD/.virtshell/env != "$env" ]] || env=.virtshell/env
    # shellcheck disable=SC1090 # written by write_env
    . "$ENV_FILE"
    cat <<TEXT

VirtShell is up after $1 s. Its guests:

$(kubectl_ -n "$NAMESPACE" get vsi)

Try next:
  . $env
  kubectl -n $NAMESPACE describe vsi hello-kubectl
  hack/vscurl GET /virtshell/api/v1/instances
  hack/guest-exec hello-rest uname -a
TEXT
}

main "$@"
