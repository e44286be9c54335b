#!/usr/bin/env bash
# Installs what VirtShell needs and this machine lacks: Debian packages, and a Rust toolchain.
#
#   packages.sh          what building and running needs
#   packages.sh --test   that, and what checking the project needs
#
# Asks apt for nothing when everything is there. Run as any user then; as root when something is missing.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly RUN=(
    libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-daemon-driver-lxc libvirt-daemon-config-network libvirt-clients
    qemu-system-x86 qemu-utils dnsmasq-base iptables iproute2 genisoimage e2fsprogs busybox-static
    ca-certificates curl jq openssl procps util-linux
)
readonly BUILD=(gcc libc6-dev pkg-config libvirt-dev git make)
readonly TEST=(shellcheck libxml2-utils python3)

main() {
    local -a wanted=("${RUN[@]}" "${BUILD[@]}") missing
    [[ ${1:-} != --test ]] || wanted+=("${TEST[@]}")
    have dpkg-query || die "this is not a Debian machine (no dpkg)" "use Debian 12 or newer, on x86-64"
    [[ $(dpkg --print-architecture) == amd64 ]] ||
        die "guests are built for x86-64, and this machine is $(dpkg --print-architecture)" "use an x86-64 machine"
    mapfile -t missing < <(not_installed "${wanted[@]}")
    [[ ${#missing[@]} -eq 0 ]] || step "Installing Debian packages: ${missing[*]}" install "${missing[@]}"
    # The guest image is made from packages that are never installed here.
    apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || ! is_root || step "Fetching Debian's package lists" apt_update
    rust
}

# not_installed PACKAGE...: prints those that are not installed, one per line.
not_installed() {
    comm -23 <(printf '%s\n' "$@" | sort) \
        <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null | sed -n 's/^installed //p' | sort)
}

install() {
    local version suite
    need_space /usr 1500 "the size of this machine's disk"
    # The parts of QEMU conflict across versions, so the missing ones come from where the present one came from.
    version=$(dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null || true)
    if [[ $version == *~bpo* ]]; then
        suite=$(. /etc/os-release && echo "$VERSION_CODENAME")-backports
        apt_install -t "$suite" "$@"
    else
        apt_install "$@"
    fi
}

# rust: makes sure of a cargo that is new enough for the workspace, with its formatter and linter.
rust() {
    local needed
    needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO/Cargo.toml")
    cargo_serves "$needed" || step "Installing Rust (VirtShell needs $needed or newer)" install_rust
    cargo_serves "$needed" || die "cargo is missing or older than $needed" "install Rust $needed or newer with rustup (https://rustup.rs)"
    if ! have cargo-clippy || ! have rustfmt; then
        have rustup || die "clippy or rustfmt is missing" "install both for your Rust toolchain"
        rustup -q component add clippy rustfmt
    fi
}

cargo_serves() { have cargo && ! older_than "$(cargo --version | cut -d ' ' -f 2)" "$1"; }

install_rust() {
    # Debian has rustup since 13.
    if ! have rustup && is_root && [[ -n $(apt-cache search --names-only '^rustup$') ]]; then
        apt_install rustup
    fi
    if have rustup; then
        rustup -q toolchain install stable --profile minimal --component clippy,rustfmt >&2 && rustup -q default stable >&2
    else
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y -q --profile minimal --component clippy,rustfmt >&2
    fi || die "Rust could not be installed" "allow the way to https://static.rust-lang.org, or install Rust by hand"
    hash -r
}

main "$@"
