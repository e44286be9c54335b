#!/usr/bin/env bash
# A Kubernetes control plane on this machine: etcd, kube-apiserver and kube-controller-manager as plain processes, loopback only.
#
#   controlplane.sh bin          print the directory that holds the programs (and kubectl); builds them when there are none
#   controlplane.sh start DIR    start it with its state in DIR and wait until it is ready; nothing happens when it runs already
#   controlplane.sh stop DIR     stop what runs from DIR; its state stays
#   controlplane.sh status DIR   say what runs from DIR; fails when not everything does
#
# DIR afterwards holds admin.kubeconfig (a full administrator), pki/, etcd/, logs/ and run/. Any number of control planes run beside
# each other: one TCP port each, etcd is reached through sockets in DIR.
#
# Environment:
#   VIRTSHELL_APISERVER_PORT=6443   where the API server listens; auto = a free port, the same at the next start
#   VIRTSHELL_UNSAFE_NO_FSYNC=1     for tests: etcd leaves its writes to the page cache
#   VIRTSHELL_CACHE                 where the built programs are kept (default ~/.cache/virtshell)
#   KUBEBUILDER_ASSETS              a directory with the four programs, used before any other
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly MODULE=$REPO/hack/controlplane
readonly PROGRAMS=(etcd kube-apiserver kube-controller-manager kubectl)
# Selectable fields of custom resources are there since 1.31 and on for good since 1.32.
readonly OLDEST_KUBERNETES=v1.32.0

main() {
    local command=${1:-}
    case $command:$# in
        bin:1) programs ;;
        start:2) start "$(realpath -m "$2")" ;;
        stop:2) stop "$(realpath -m "$2")" ;;
        status:2) status "$(realpath -m "$2")" ;;
        *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
    esac
}

# --- The programs -----------------------------------------------------------------------------------------------------------------

# programs: prints the directory that holds them.
programs() {
    local directory
    local -a candidates
    if [[ -n ${KUBEBUILDER_ASSETS:-} ]] && ! usable "$KUBEBUILDER_ASSETS"; then
        say "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS is not used: $(missing_in "$KUBEBUILDER_ASSETS")"
    fi
    # A kubectl alone is common, so only a directory that holds all of them counts.
    IFS=: read -ra candidates <<<"${KUBEBUILDER_ASSETS:-}:$PATH"
    for directory in "${candidates[@]}"; do
        if [[ -n $directory ]] && usable "$directory"; then
            echo "$directory"
            return
        fi
    done
    build
}

usable() { [[ -z $(missing_in "$1") ]]; }

# missing_in DIRECTORY: prints what keeps it from being used; nothing when it can be.
missing_in() {
    local program version
    for program in "${PROGRAMS[@]}"; do
        [[ -x $1/$program ]] || { echo "it has no $program" && return; }
    done
    version=$("$1/kube-apiserver" --version | cut -d ' ' -f 2) || true
    ! older_than "$version" "$OLDEST_KUBERNETES" || echo "its Kubernetes ($version) is older than $OLDEST_KUBERNETES"
}

# build: makes the programs from the module when the cache does not have them, and prints their directory.
build() {
    local directory
    directory=$CACHE_DIR/controlplane/$(kubernetes_version)-$(cat "$MODULE"/{go.mod,go.sum,main.go} | sha256sum | cut -c 1-12)
    [[ -e $directory/kubectl ]] || with_lock "$CACHE_DIR/controlplane/.lock" build_into "$directory"
    echo "$directory"
}

kubernetes_version() { awk '$1 == "k8s.io/kubernetes" {print $2}' "$MODULE/go.mod"; }

# build_into DIRECTORY: appears there complete or not at all.
build_into() {
    local directory=$1 partial=$1.partial go version major minor package flags="-s -w" program
    # Another caller may have built it while this one waited for the lock.
    [[ ! -e $directory/kubectl ]] || return 0
    go=$(go_command)
    version=$(kubernetes_version)
    IFS=. read -r major minor _ <<<"${version#v}"
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $package.gitVersion=$version -X $package.gitMajor=$major -X $package.gitMinor=$minor"
    done
    need_space "$CACHE_DIR" 500 VIRTSHELL_CACHE
    need_space "$("$go" env GOCACHE)" 4000 GOCACHE
    rm -rf "$partial"
    mkdir -p "$partial"
    say "==> Building Kubernetes $version and etcd from their Go modules, once (5 to 6 minutes on two cores)"
    local started
    started=$(now_ms)
    # Static, so that the program does not depend on whether a C compiler was there.
    (cd "$MODULE" && GOTOOLCHAIN=local GOWORK=off GOFLAGS=-buildvcs=false CGO_ENABLED=0 \
        "$go" build -trimpath -ldflags "$flags" -o "$partial/controlplane" . >&2) || {
        rm -rf "$partial"
        die "the control plane could not be built" "see the message above; it needs the Go module proxy ($("$go" env GOPROXY)), 4 GB of memory and 5 GB of disk, or KUBEBUILDER_ASSETS=<directory with ${PROGRAMS[*]}>"
    }
    say "    $(seconds_since "$started") s"
    for program in "${PROGRAMS[@]}"; do
        ln -s controlplane "$partial/$program"
    done
    mv -T "$partial" "$directory"
}

# go_command: prints a go that is new enough for the module. An older one (Debian's) is enough to fetch it: Go's toolchains are
# modules too, checked against the same checksum database.
go_command() {
    local needed toolchain directory
    needed=$(awk '$1 == "go" {print $2}' "$MODULE/go.mod")
    have go || { is_root && have apt-get && step "Installing Debian's Go" apt_install golang-go; } ||
        die "there is no Go compiler to build the control plane with" "install Go $needed or newer (https://go.dev/dl), or set KUBEBUILDER_ASSETS to a directory with ${PROGRAMS[*]}"
    if ! older_than "$(cd / && GOTOOLCHAIN=local go env GOVERSION)" "go$needed"; then
        command -v go
        return
    fi
    toolchain=golang.org/toolchain@v0.0.1-go$needed.linux-$(cd / && go env GOARCH)
    say "==> Fetching Go $needed"
    (cd / && GO111MODULE=on GOTOOLCHAIN=local go mod download "$toolchain" >&2) ||
        die "Go $needed could not be fetched from $(go env GOPROXY)" "allow the way to the Go module proxy, or install Go $needed or newer"
    directory=$(go env GOMODCACHE)/$toolchain
    # Module archives carry no modes.
    find "$directory/bin" "$directory/pkg/tool" -type f -exec chmod +x {} +
    echo "$directory/bin/go"
}

# --- Starting ---------------------------------------------------------------------------------------------------------------------

start() {
    local programs
    programs=$(programs)
    umask 077
    mkdir -p "$1"
    chmod 700 "$1"
    with_lock "$1/.lock" start_locked "$1" "$programs"
}

start_locked() {
    local dir=$1 programs=$2 attempt port
    [[ -e $dir/pki ]] || make_pki "$dir"
    start_etcd "$dir" "$programs"
    # Whoever takes an automatic port between our look and the server's bind costs one more attempt.
    for attempt in 1 2 3 4 5; do
        port=$(choose_port "$dir" kube-apiserver VIRTSHELL_APISERVER_PORT 6443)
        start_apiserver "$dir" "$programs" "$port"
        wait_until 60 apiserver_is_settled "$dir" "$port" || true
        if apiserver_is_ready "$dir" "$port"; then
            write_kubeconfig "$dir" admin "$port"
            start_controller_manager "$dir" "$programs" "$port"
            wait_until 30 controllers_work "$dir" "$port" || give_up "$dir" kube-controller-manager
            return
        fi
        if is_running "$dir" kube-apiserver || port_is_free "$port"; then break; fi
        say "port $port was taken by $(port_owner "$port") meanwhile (attempt $attempt)"
    done
    is_running "$dir" etcd || give_up "$dir" etcd
    give_up "$dir" kube-apiserver
}

# give_up DIR PROGRAM: shows the end of what it said, and leaves nothing half-started behind.
give_up() {
    local dir=$1 program=$2
    say "The last lines of $dir/logs/$program.log:"
    tail -n 15 "$dir/logs/$program.log" >&2 || true
    stop_all "$dir"
    die "$program did not become ready" "the lines above say why; to begin again from nothing, remove $dir"
}

start_etcd() {
    local -a fsync=()
    [[ -z ${VIRTSHELL_UNSAFE_NO_FSYNC:-} ]] || fsync=(--unsafe-no-fsync)
    # Sockets need no port and no certificates: DIR's mode says who may use them. etcd wants them in the form host:port, which makes a
    # file of that name in the directory it runs in.
    start_process "$1" etcd "$2/etcd" \
        --name=virtshell --data-dir=etcd --listen-client-urls=unix://etcd.sock:0 --advertise-client-urls=unix://etcd.sock:0 \
        --listen-peer-urls=unix://etcd-peer.sock:0 --initial-advertise-peer-urls=unix://etcd-peer.sock:0 \
        --initial-cluster=virtshell=unix://etcd-peer.sock:0 --auto-compaction-retention=1h --quota-backend-bytes=4294967296 \
        --log-level=warn "${fsync[@]}"
}

start_apiserver() {
    start_process "$1" kube-apiserver "$2/kube-apiserver" \
        --etcd-servers=unix://etcd.sock:0 \
        --bind-address=127.0.0.1 --secure-port="$3" --advertise-address=127.0.0.1 --endpoint-reconciler-type=none \
        --service-cluster-ip-range=10.96.0.0/16 \
        --tls-cert-file=pki/apiserver.crt --tls-private-key-file=pki/apiserver.key \
        --client-ca-file=pki/ca.crt --anonymous-auth=false --authorization-mode=Node,RBAC \
        --service-account-issuer=https://kubernetes.default.svc.cluster.local \
        --service-account-key-file=pki/service-accounts.pub --service-account-signing-key-file=pki/service-accounts.key \
        --profiling=false
}

start_controller_manager() {
    # No nodes, pods or services are managed here; what the API itself promises must hold: owner references, namespace deletion,
    # service accounts, aggregated roles. The limits on its requests are for clusters; here one namespace deletion alone is 80.
    write_kubeconfig "$1" controller-manager "$3"
    start_process "$1" kube-controller-manager "$2/kube-controller-manager" \
        --kubeconfig=controller-manager.kubeconfig --use-service-account-credentials --leader-elect=false --secure-port=0 \
        --controllers=garbage-collector-controller,namespace-controller,serviceaccount-controller,serviceaccount-token-controller,root-ca-certificate-publisher-controller,clusterrole-aggregation-controller,validatingadmissionpolicy-status-controller \
        --service-account-private-key-file=pki/service-accounts.key --root-ca-file=pki/ca.crt \
        --kube-api-qps=500 --kube-api-burst=1000 --profiling=false
}

apiserver_is_ready() { [[ $(get "$1" "$2" /readyz) == ok ]]; }

# apiserver_is_settled DIR PORT: it is ready, or never will be.
apiserver_is_settled() { apiserver_is_ready "$1" "$2" || is_stopped "$1" kube-apiserver || is_stopped "$1" etcd; }

# controllers_work DIR PORT: the default service account is there, which a controller makes.
controllers_work() { [[ $(get "$1" "$2" /api/v1/namespaces/default/serviceaccounts/default) == *'"uid"'* ]]; }

# get DIR PORT PATH: asks the API server as administrator.
get() {
    curl --silent --max-time 5 --cacert "$1/pki/ca.crt" --cert "$1/pki/admin.crt" --key "$1/pki/admin.key" "https://127.0.0.1:$2$3" || true
}

# --- Certificates -----------------------------------------------------------------------------------------------------------------

# make_pki DIR: an authority, the server's certificate, those of two clients, and the key that signs service-account tokens. pki/
# appears complete or not at all.
make_pki() {
    local dir=$1 pki=$1/.pki
    rm -rf "$pki"
    mkdir -p "$pki"
    cat >"$pki/openssl.cnf" <<'CNF'
[req]
prompt = no
distinguished_name = none
[none]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = IP:127.0.0.1, IP:10.96.0.1, DNS:localhost, DNS:kubernetes, DNS:kubernetes.default, DNS:kubernetes.default.svc, DNS:kubernetes.default.svc.cluster.local
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
CNF
    make_key "$pki/ca"
    openssl req -x509 -new -config "$pki/openssl.cnf" -extensions authority -key "$pki/ca.key" -subj /CN=virtshell-ca -days 3650 -out "$pki/ca.crt"
    make_certificate "$pki" apiserver server /CN=kube-apiserver
    make_certificate "$pki" admin client /O=system:masters/CN=admin
    make_certificate "$pki" controller-manager client /CN=system:kube-controller-manager
    make_key "$pki/service-accounts"
    openssl pkey -in "$pki/service-accounts.key" -pubout -out "$pki/service-accounts.pub"
    mv -T "$pki" "$dir/pki"
}

make_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key" 2>/dev/null; }

# make_certificate PKI NAME EXTENSIONS SUBJECT
make_certificate() {
    make_key "$1/$2"
    openssl req -x509 -new -config "$1/openssl.cnf" -extensions "$3" -key "$1/$2.key" -subj "$4" -days 3650 \
        -CA "$1/ca.crt" -CAkey "$1/ca.key" -out "$1/$2.crt"
}

# write_kubeconfig DIR CLIENT PORT: DIR/CLIENT.kubeconfig, complete in itself.
write_kubeconfig() {
    local file=$1/$2.kubeconfig
    cat >"$file.new" <<YAML
apiVersion: v1
kind: Config
clusters:
- name: virtshell
  cluster: {server: "https://127.0.0.1:$3", certificate-authority-data: $(base64 -w 0 "$1/pki/ca.crt")}
users:
- name: $2
  user: {client-certificate-data: $(base64 -w 0 "$1/pki/$2.crt"), client-key-data: $(base64 -w 0 "$1/pki/$2.key")}
contexts:
- name: virtshell
  context: {cluster: virtshell, user: $2}
current-context: virtshell
YAML
    mv "$file.new" "$file"
}

# --- Stopping and looking ---------------------------------------------------------------------------------------------------------

stop() {
    [[ ! -d $1 ]] || with_lock "$1/.lock" stop_all "$1"
}

# stop_all DIR: clients before servers, so that none complains that its server is gone. The API server would wait for every watch of
# others to end; it keeps nothing that a kill could lose.
stop_all() {
    stop_process "$1" kube-controller-manager
    stop_process "$1" kube-apiserver 2
    stop_process "$1" etcd
}

status() {
    local name pid code=0
    for name in etcd kube-apiserver kube-controller-manager; do
        if pid=$(process_id "$1" "$name"); then
            echo "$name: runs, pid $pid, log $1/logs/$name.log"
        else
            echo "$name: does not run"
            code=1
        fi
    done
    [[ $code -ne 0 ]] || echo "kubeconfig: $1/admin.kubeconfig"
    return $code
}

main "$@"
