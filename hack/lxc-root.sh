#!/usr/bin/env bash
# Builds a root file system for libvirt's LXC containers and prints the path of its tar.gz.
#
#   hack/lxc-root.sh                        busybox: 1 MB, unpacked in no time
#   hack/lxc-root.sh --git                  the same with Git, and a repository in /srv/builder.git: what manifests/samples builds from
#   hack/lxc-root.sh --debian [PACKAGE...]  a minimal Debian 12 with these packages besides (root, about 30 s)
#
# All have the same first process, /sbin/init (hack/guest/lxc): DHCP on every eth*, the NoCloud
# seed from /var/lib/cloud/seed/nocloud, a shell on the console, libvirt's shutdown and reboot.
# Built once per set of inputs under ${VIRTSHELL_CACHE:-${XDG_CACHE_HOME:-~/.cache}/virtshell}/images/.
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

readonly SUITE=bookworm
# Git clones over file, git and ssh with its main program alone; the others bring the libraries that it links to.
readonly GIT_PACKAGES=(git libc6 libpcre2-8-0 zlib1g)
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
    { cat "${BASH_SOURCE[0]}"; tar -C "$root/hack/guest" --sort=name --mtime=@0 --owner=0 --group=0 -c common lxc builder; printf '%s\n' "$@"; } |
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

git_tree() {
    local tree=$1 author=(-c user.name=VirtShell -c user.email=virtshell@example.org) name
    busybox_tree "$tree"
    apt-get -qq -o APT::Sandbox::User=root download "${GIT_PACKAGES[@]}" >&2 ||
        die "Debian's git cannot be fetched" "apt-get update, and look at the network"
    for name in "${GIT_PACKAGES[@]}"; do dpkg-deb --extract "$name"_*.deb packages; done
    mkdir -p "$tree"/usr/{lib,lib64,lib/x86_64-linux-gnu,share/git-core/templates}
    for name in lib lib64; do ln -s "usr/$name" "$tree/$name"; done
    cp packages/usr/bin/git "$tree/usr/bin/"
    # What a clone from a file starts on the other side.
    ln -s git "$tree/usr/bin/git-upload-pack"
    cp -L packages/lib64/ld-linux-x86-64.so.2 "$tree/usr/lib64/"
    cp -L packages/lib/x86_64-linux-gnu/{libc.so.6,libz.so.1} packages/usr/lib/x86_64-linux-gnu/libpcre2-8.so.0 "$tree/usr/lib/x86_64-linux-gnu/"
    mkdir -p "$tree/srv" repository
    cp "$root"/hack/guest/builder/* repository
    git -C repository init --quiet --initial-branch main
    git -C repository add .
    git -C repository "${author[@]}" commit --quiet --message "A website and its database"
    git clone --quiet --bare repository "$tree/srv/builder.git"
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
        --git)
            kind=git
            require git git
            inputs=$(apt-get download --print-uris busybox-static "${GIT_PACKAGES[@]}") || die "apt does not know all of: ${GIT_PACKAGES[*]}" "apt-get update"
            shift
            ;;
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
