#!/usr/bin/env bash
# Installs what VirtShell needs and this machine lacks: Debian packages, and a Rust toolchain.
#
#   packages.sh          what building and running needs
#   packages.sh --test   that, and what checking the project needs
#
# Asks apt for nothing when everything is there. Run as any user then; as root when something is missing. Debian 12 on x86-64 only.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly RUN=(
    libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-daemon-driver-lxc libvirt-daemon-config-network libvirt-clients
    qemu-system-x86 qemu-utils dnsmasq-base iptables iproute2 genisoimage e2fsprogs xz-utils zstd
    ca-certificates curl jq mount openssl procps util-linux
)
readonly BUILD=(gcc libc6-dev pkg-config libvirt-dev git make)
readonly TEST=(shellcheck libxml2-utils mmdebstrap python3 python3-venv wrk)

main() {
    local -a wanted=("${RUN[@]}" "${BUILD[@]}") missing
    [[ ${1:-} != --test ]] || wanted+=("${TEST[@]}")
    check_machine
    mapfile -t missing < <(not_installed "${wanted[@]}")
    [[ ${#missing[@]} -eq 0 ]] || step "Installing Debian packages: ${missing[*]}" install "${missing[@]}"
    # The guest image is made from packages that are never installed here.
    apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || ! is_root || step "Fetching Debian's package lists" apt_update
    rust
    [[ ${1:-} != --test ]] || linters
}

# check_machine: the guest images are put together from this machine's own package source, which must be the one they were written for.
check_machine() {
    local codename name
    IFS=: read -r codename name < <(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME:-}:${PRETTY_NAME:-}") || true
    [[ $codename == bookworm ]] ||
        die "guest images are made from the packages of Debian 12 (bookworm), and this machine is ${name:-not Debian}" "use Debian 12 on x86-64"
    [[ $(dpkg --print-architecture) == amd64 ]] ||
        die "guest images are made for x86-64, and this machine is $(dpkg --print-architecture)" "use Debian 12 on x86-64"
}

# not_installed PACKAGE...: prints those that are not installed, one per line.
not_installed() {
    comm -23 <(printf '%s\n' "$@" | sort) \
        <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null | sed -n 's/^installed //p' | sort)
}

install() {
    local suite
    local -a qemu
    need_space /usr 1500 "the size of this machine's disk"
    suite=$(qemu_suite)
    if [[ -n $suite ]]; then
        # Only these: with the whole list, libvirt, systemd and more would come from there too.
        mapfile -t qemu < <(printf '%s\n' "$@" | grep '^qemu-')
        [[ ${#qemu[@]} -eq 0 ]] || apt_install -t "$suite" "${qemu[@]}"
    fi
    apt_install "$@"
}

# qemu_suite: prints the suite that missing parts of QEMU must come from; nothing for the release itself. The parts conflict across
# versions, so those that are there already decide.
qemu_suite() {
    local versions
    versions=$(dpkg-query -W -f '${db:Status-Status} ${Version}\n' qemu-utils qemu-system-common qemu-system-x86 2>/dev/null || true)
    [[ ! $versions =~ (^|$'\n')installed\ [^$'\n']*~bpo ]] || echo bookworm-backports
}

# rust: makes sure of a cargo that is new enough for the workspace.
rust() {
    local needed
    needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO/Cargo.toml")
    cargo_serves "$needed" || step "Installing Rust (VirtShell needs $needed or newer)" install_rust
    cargo_serves "$needed" || die "cargo is missing or older than $needed" "install Rust $needed or newer with rustup (https://rustup.rs)"
}

# cargo_serves VERSION: whether there is a cargo that works (rustup's stands for one that may not be installed) and is no older.
cargo_serves() { have cargo && ! older_than "$(cargo --version 2>/dev/null | cut -d ' ' -f 2)" "$1"; }

install_rust() {
    if have rustup; then
        rustup -q toolchain install stable --profile minimal --component clippy,rustfmt >&2 && rustup -q default stable >&2
    else
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y -q --profile minimal --component clippy,rustfmt >&2
    fi || die "Rust could not be installed" \
        "allow the way to https://sh.rustup.rs and https://static.rust-lang.org (https_proxy is honoured), or install cargo, clippy and rustfmt by hand and have them on root's PATH or in ${CARGO_HOME:-~/.cargo}/bin"
    hash -r
}

# linters: makes sure of clippy and rustfmt. rustup has their names in place before it has the programs.
linters() {
    ! { cargo clippy --version && cargo fmt --version; } >/dev/null 2>&1 || return 0
    have rustup || die "clippy or rustfmt is missing" "install both for your Rust toolchain"
    step "Installing clippy and rustfmt" install_linters
}

install_linters() {
    rustup -q component add clippy rustfmt >&2 ||
        die "clippy or rustfmt could not be installed" "allow the way to https://static.rust-lang.org, or install both for your Rust toolchain"
}

main "$@"
