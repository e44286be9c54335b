#!/usr/bin/env bash
# Builds a root file system for libvirt's LXC containers and prints the path of its tar.gz.
#
#   hack/lxc-root.sh                        busybox: 1 MB, unpacked in no time
#   hack/lxc-root.sh --debian [PACKAGE...]  a minimal Debian 12 with these packages besides (root, about 30 s)
#
# Both have the same first process, /sbin/init (hack/guest/lxc): DHCP on every eth*, the NoCloud
# seed from /var/lib/cloud/seed/nocloud, a shell on the console, libvirt's shutdown and reboot.
# Built once per set of inputs under ${VIRTSHELL_CACHE:-${XDG_CACHE_HOME:-~/.cache}/virtshell}/images/.
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

readonly SUITE=bookworm
# What our init needs in a Debian that has no init of its own.
readonly DEBIAN_PACKAGES=(busybox-static iproute2 hostname)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${VIRTSHELL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/virtshell}/images

step() { printf '==> %s\n' "$1" >&2; }
die() {
    printf 'error: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf 'cure:  %s\n' "$2" >&2
    exit 1
}

require() { command -v "$1" >/dev/null || die "$1 is missing" "apt-get install $2"; }

# Names one result: equal inputs, equal root.
inputs_hash() {
    { cat "${BASH_SOURCE[0]}"; tar -C "$root/hack/guest" --sort=name --mtime=@0 --owner=0 --group=0 -c common lxc; printf '%s\n' "$@"; } |
        sha256sum | cut -c 1-16
}

add_init() {
    local name
    mkdir -p "$1/usr/sbin"
    cp -r "$root/hack/guest/common/." "$root/hack/guest/lxc/." "$1/"
    for name in poweroff reboot halt; do ln -sf shutdown "$1/usr/sbin/$name"; done
    echo localhost >"$1/etc/hostname"
    echo '127.0.0.1 localhost' >"$1/etc/hosts"
}

# Debian's merged /usr, with the applets of busybox as links.
busybox_tree() {
    local tree=$1 applet name
    apt-get -qq -o APT::Sandbox::User=root download busybox-static >&2 ||
        die "Debian's busybox-static cannot be fetched" "apt-get update, and look at the network"
    dpkg-deb --extract busybox-static_*.deb package
    mkdir -p "$tree"/{dev,proc,sys,run,tmp,root,mnt,usr/bin,usr/sbin,etc,var/log,var/lib}
    chmod 1777 "$tree/tmp"
    for name in bin sbin; do ln -s "usr/$name" "$tree/$name"; done
    ln -s ../run "$tree/var/run"
    cp package/bin/busybox "$tree/usr/bin/busybox"
    add_init "$tree"
    package/bin/busybox --list-full | while read -r applet; do
        applet=$tree/usr/${applet#usr/}
        [ -e "$applet" ] || ln -s /bin/busybox "$applet"
    done
    echo 'root::0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
    printf 'root:x:0:\ntty:x:5:\n' >"$tree/etc/group"
    printf 'ID=virtshell-container\nID_LIKE=debian\nNAME="VirtShell container"\nPRETTY_NAME="VirtShell container (busybox)"\nVERSION_ID=12\n' >"$tree/etc/os-release"
}

debian_tree() {
    local tree=$1 include
    shift
    include=$(IFS=,; echo "$*")
    step "Debian $SUITE with $include"
    mmdebstrap --quiet --variant=minbase --include="$include" "$SUITE" "$tree" >&2 ||
        die "mmdebstrap cannot make a Debian root" "read its message above; the packages must be Debian's, the network must reach the archive"
    rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
    add_init "$tree"
}

build() {
    local result=$1 kind=$2 work
    shift 2
    work=$(mktemp -d "$cache/.lxc.XXXXXX")
    # shellcheck disable=SC2064 # the directory is fixed now
    trap "rm -rf --one-file-system '$work'" EXIT
    trap 'exit 130' INT TERM HUP
    cd "$work"
    mkdir tree
    "${kind}_tree" tree "$@"
    tar -C tree --numeric-owner --owner=0 --group=0 --sort=name -czf root.tar.gz .
    mv root.tar.gz "$result"
}

main() {
    local kind=busybox inputs result
    case ${1:-} in
        "") inputs=$(apt-get download --print-uris busybox-static) || die "apt knows no package busybox-static" "apt-get update" ;;
        --debian)
            kind=debian
            shift
            set -- "${DEBIAN_PACKAGES[@]}" "$@"
            [ "$(id -u)" = 0 ] || die "a Debian root is made as root" "sudo $0 --debian"
            require mmdebstrap mmdebstrap
            inputs=$(apt-get download --print-uris "$@") || die "apt does not know all of: $*" "apt-get update, or correct the names"
            ;;
        *) die "usage: hack/lxc-root.sh [--debian [PACKAGE...]]" ;;
    esac
    require dpkg-deb dpkg
    mkdir -p "$cache"
    result=$cache/lxc-$kind-$(inputs_hash "$kind" "$inputs").tar.gz
    if [ ! -e "$result" ]; then
        step "container root: $kind"
        exec 9>"$cache/.lxc.lock"
        flock 9
        # What a killed build left: nobody else builds while we hold the lock.
        find "$cache" -maxdepth 1 -name '.lxc.??????' -exec rm -rf --one-file-system {} +
        [ -e "$result" ] || (build "$result" "$kind" "$@")
    fi
    echo "$result"
}

main "$@"
