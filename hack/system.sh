# shellcheck shell=bash
# What VirtShell on one machine consists of: its names, folders, ports and the invocations of its three roles.
#
# To be sourced by up.sh, down.sh and clean.sh, after lib.sh. Every setting is an environment variable, so that a second, complete
# system can run beside a first one: give it its own VIRTSHELL_STATE_DIR, VIRTSHELL_DATA_DIR and VIRTSHELL_HOST_NAME, and "auto" for
# its ports.
# shellcheck disable=SC2034 # these are for the scripts that source this

# remembered NAME DEFAULT: prints what `make up` was last told, so that `make down` and `make clean` need not be told again.
remembered() { cat "$STATE_DIR/settings/$1" 2>/dev/null || echo "$2"; }

# remember NAME VALUE
remember() { mkdir -p "$STATE_DIR/settings" && echo "$2" >"$STATE_DIR/settings/$1"; }

# Where the node keeps images and disks; QEMU's user must be able to enter it.
DATA_DIR=$(realpath -m "${VIRTSHELL_DATA_DIR:-$(remembered data-dir /var/lib/virtshell)}")
# metadata.name of this machine's Host: its host name, made fit for Kubernetes.
HOST_NAME=${VIRTSHELL_HOST_NAME:-$(remembered host-name "$(uname -n | tr '[:upper:]' '[:lower:]' | sed -E 's/[^a-z0-9]+/-/g; s/^-+//' | cut -c 1-50 | sed -E 's/-+$//')")}
# Namespaces: of the Instances and what they refer to, and of the operator.
readonly NAMESPACE=virtshell SYSTEM_NAMESPACE=virtshell-system
readonly CONTROL_PLANE=$STATE_DIR/controlplane ROLES=(controller node gateway)
readonly ENV_FILE=$STATE_DIR/env CREDENTIALS=$STATE_DIR/credentials
BINARIES=${CARGO_TARGET_DIR:-$REPO/target}/release

# choose_ports: sets the port of each role, and dies when something else has it.
choose_ports() {
    GATEWAY_PORT=$(choose_port "$STATE_DIR" gateway VIRTSHELL_GATEWAY_PORT 8080)
    ROOT_PORT=$(choose_port "$STATE_DIR" gateway VIRTSHELL_ROOT_PORT 8081 root)
    CONTROLLER_PORT=$(choose_port "$STATE_DIR" controller VIRTSHELL_CONTROLLER_PORT 10351)
    NODE_PORT=$(choose_port "$STATE_DIR" node VIRTSHELL_NODE_PORT 10352)
    NODE_API_PORT=$(choose_port "$STATE_DIR" node VIRTSHELL_NODE_API_PORT 10350 api)
    # Here too, so that a port that is taken is known before anything is built.
    ! uses_own_cluster || choose_port "$CONTROL_PLANE" kube-apiserver VIRTSHELL_APISERVER_PORT 6443 >/dev/null
}

# role_command ROLE: sets COMMAND to the program and arguments of a role, and LISTEN to its address of /readyz and /metrics. Each role
# has an identity of its own: the kubeconfig names the file with its service account's token.
role_command() {
    local kubeconfig=$STATE_DIR/$1.kubeconfig
    case $1 in
        controller)
            LISTEN=127.0.0.1:$CONTROLLER_PORT
            COMMAND=("$BINARIES/virtshell-operator" controller --kubeconfig "$kubeconfig" --namespace "$SYSTEM_NAMESPACE" --listen "$LISTEN"
                --gateway-url "http://127.0.0.1:$GATEWAY_PORT,http://localhost:$GATEWAY_PORT,http://127.0.0.1:$ROOT_PORT,http://localhost:$ROOT_PORT")
            ;;
        node)
            LISTEN=127.0.0.1:$NODE_PORT
            COMMAND=("$BINARIES/virtshell-operator" node --kubeconfig "$kubeconfig" --token-file "$STATE_DIR/node.token"
                --namespace "$SYSTEM_NAMESPACE" --host-name "$HOST_NAME" --data-dir "$DATA_DIR"
                --gateway-url "http://127.0.0.1:$GATEWAY_PORT" --allow-emulation --allow-file-images --image-source-allow 127.0.0.0/8 --listen "$LISTEN" --listen-api "127.0.0.1:$NODE_API_PORT")
            ;;
        gateway)
            LISTEN=127.0.0.1:$GATEWAY_PORT
            COMMAND=("$BINARIES/virtshell-gateway" --kubeconfig "$kubeconfig" --namespace "$NAMESPACE" --listen "$LISTEN"
                --virtshell-root-listen "127.0.0.1:$ROOT_PORT" --file-store "$STATE_DIR/files")
            ;;
    esac
}

# role_account ROLE: the service account whose identity a role has, and for how long its token is asked. The node's is only the first
# one: it renews it itself. The others get new ones from `make up`.
role_account() {
    case $1 in
        controller) echo virtshell-controller 8760h ;;
        node) echo "virtshell-host-$HOST_NAME" 168h ;;
        gateway) echo virtshell-gateway 8760h ;;
    esac
}

# A relative path means something else after cd; several files, joined by colons, are left as they are.
if [[ -n ${KUBECONFIG:-} && $KUBECONFIG != *:* ]]; then
    KUBECONFIG=$(realpath -m "$KUBECONFIG")
fi

# bring_down: ends the processes of the system, clients before servers. Guests run on: they are no children of ours.
bring_down() {
    local role
    for role in gateway controller node; do
        stop_process "$STATE_DIR" "$role"
    done
    "$REPO/hack/controlplane.sh" stop "$CONTROL_PLANE"
    [[ ! -d $STATE_DIR/libvirt ]] || "$REPO/hack/libvirt.sh" stop
}

# use_cluster: makes kubectl mean the right program and the right cluster: the one the user names with KUBECONFIG, or our own.
use_cluster() {
    local programs
    if uses_own_cluster; then
        export KUBECONFIG=$CONTROL_PLANE/admin.kubeconfig
        programs=$("$REPO/hack/controlplane.sh" bin)
        PATH=$programs:$PATH
    elif ! have kubectl; then
        programs=$("$REPO/hack/controlplane.sh" bin)
        PATH=$programs:$PATH
    fi
}

uses_own_cluster() { [[ -z ${KUBECONFIG:-} || $KUBECONFIG == "$CONTROL_PLANE/admin.kubeconfig" ]]; }

# kubectl_ ARGUMENT...: for requests that are answered at once; `kubectl wait` has a time limit of its own.
kubectl_() { kubectl --request-timeout=20s "$@"; }

# apply ARGUMENT...: server-side, so that nobody else's fields are touched. Quiet unless it fails.
apply() { kubectl_ apply --server-side --force-conflicts --field-manager=virtshell-setup "$@" >/dev/null; }

# --- Identities -------------------------------------------------------------------------------------------------------------------

# host_account HOST: the account of a host's agent and its role. The controller makes them when it knows the host, but a first token
# must come from whoever sets the machine up.
host_account() {
    apply -f - <<YAML
apiVersion: v1
kind: ServiceAccount
metadata: {name: virtshell-host-$1, namespace: $SYSTEM_NAMESPACE}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: virtshell-host-$1}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: virtshell-node}
subjects: [{kind: ServiceAccount, name: virtshell-host-$1, namespace: $SYSTEM_NAMESPACE}]
YAML
}

# first_token ACCOUNT DURATION FILE: a token of the account.
first_token() {
    wait_until 40 create_token "$@" || die "the service account $1 gets no token: $(cat "$3.error")" "see the cluster's message; a further run tries again"
    rm "$3.error"
}

# create_token ACCOUNT DURATION FILE: fails for up to 30 s after a start of the API server, see definitions.
create_token() { kubectl_ -n "$SYSTEM_NAMESPACE" create token "$1" --duration="$2" 2>"$3.error" | write_private "$3"; }

# role_kubeconfig ACCOUNT TOKEN-FILE: prints a kubeconfig for the cluster that kubectl means (JSON, which YAML contains).
role_kubeconfig() {
    kubectl config view --raw --minify --flatten -o json | jq --arg account "$1" --arg token "$2" '{
        apiVersion: "v1", kind: "Config",
        clusters: [{name: "virtshell", cluster: .clusters[0].cluster}],
        users: [{name: $account, user: {tokenFile: $token}}],
        contexts: [{name: "virtshell", context: {cluster: "virtshell", user: $account}}],
        "current-context": "virtshell"}'
}

# write_private FILE: writes stdin to it, readable by its owner only, complete or not at all.
write_private() (
    umask 077
    cat >"$1.new"
    [[ -s $1.new ]] || return 1
    mv "$1.new" "$1"
)
