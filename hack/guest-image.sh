#!/usr/bin/env bash
# Builds a small real guest from Debian's packages: kernel, busybox, virtio, QEMU guest agent, SSH server.
#
#   hack/guest-image.sh            path of a qcow2 disk that boots by itself (BIOS)
#   hack/guest-image.sh --kernel   path of its kernel, for direct kernel boot
#   hack/guest-image.sh --initrd   path of its initramfs, for direct kernel boot
#   hack/guest-image.sh --cmdline  the kernel command line that both ways use; with the word
#                                  `noagent` the guest runs no QEMU guest agent
#   hack/guest-image.sh --iso      path of a medium that installs it on the first disk, by itself
#
# Built once per set of inputs (this script, hack/guest, package versions) under
# ${VIRTSHELL_CACHE:-${XDG_CACHE_HOME:-~/.cache}/virtshell}/images/. Needs no root, no loop device
# and installs nothing: packages are unpacked in a temporary directory beside the result.
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

# What runs in the guest: busybox, the agent, the SSH server, and the libraries they link to.
readonly GUEST_PACKAGES=(busybox-static libc6
    qemu-guest-agent libglib2.0-0 libnuma1 libpcre2-8-0 libudev1 liburing2
    dropbear-bin libcrypt1 libgmp10 libtomcrypt1 libtommath1 zlib1g)
# What makes disk and medium: FAT tools and boot loaders that work on plain files.
readonly TOOL_PACKAGES=(isolinux mtools syslinux syslinux-common)
# Measured emulated, start to agent: `quiet` alone 3.5 s, with the rest 3.1 s. The guest holds nothing worth the mitigations.
readonly CMDLINE="console=ttyS0 quiet tsc=reliable no_timer_check mitigations=off cryptomgr.notests random.trust_cpu=on lsm= audit=0 rcupdate.rcu_expedited=1"
# Partition 1 (FAT) holds kernel and initramfs, about 20 MiB; the rest is partition 2 (ext4).
readonly DISK_MIB=256 BOOT_AT_MIB=1 BOOT_MIB=31 DATA_AT_MIB=32

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${VIRTSHELL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/virtshell}/images

step() { printf '==> %s\n' "$1" >&2; }
die() {
    printf 'error: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf 'cure:  %s\n' "$2" >&2
    exit 1
}

# --- inputs --------------------------------------------------------------------------------

# The kernel that the meta package stands for today.
kernel_package() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1
}

# One line per package: URI, file name, size, checksum. A new version changes it.
package_list() {
    local kernel
    kernel=$(kernel_package)
    [ -n "$kernel" ] || die "apt knows no package linux-image-cloud-amd64" "apt-get update, with Debian's main archive in sources.list"
    apt-get download --print-uris "$kernel" "${GUEST_PACKAGES[@]}" "${TOOL_PACKAGES[@]}" ||
        die "apt does not know all packages of the guest" "apt-get update"
}

# Names one result: equal inputs, equal image.
inputs_hash() {
    { cat "${BASH_SOURCE[0]}"; tar -C "$root/hack/guest" --sort=name --mtime=@0 --owner=0 --group=0 -c common vm; printf '%s' "$1" "$CMDLINE"; } |
        sha256sum | cut -c 1-16
}

require_tools() {
    local need
    for need in apt-get:apt dpkg-deb:dpkg genisoimage:genisoimage mke2fs:e2fsprogs qemu-img:qemu-utils; do
        command -v "${need%:*}" >/dev/null || die "${need%:*} is missing" "apt-get install ${need#*:}"
    done
    [ "$(dpkg --print-architecture)" = amd64 ] || die "the guest image is built on amd64 only" "use a machine with an x86-64 processor"
}

# --- packages ------------------------------------------------------------------------------

# Unpacks packages of the current directory into $1.
unpack() {
    local into=$1 name
    shift
    mkdir -p "$into"
    for name; do
        dpkg-deb --extract "$name"_*.deb "$into"
    done
}

fetch_packages() {
    step "packages: $(awk '{size += $3} END {printf "%d MB", size / 1000000}' <<<"$1")"
    # apt drops to the user _apt, who may not enter our directory; the packages' checksums are checked either way.
    apt-get -qq -o APT::Sandbox::User=root download "$(kernel_package)" "${GUEST_PACKAGES[@]}" "${TOOL_PACKAGES[@]}" >&2 ||
        die "Debian's packages cannot be fetched" "apt-get update, and look at the network; nothing half-made is kept"
}

# --- the guest's root file system ----------------------------------------------------------

# Debian's merged /usr, with the applets of busybox as links.
make_tree() {
    local tree=$1 applet name
    mkdir -p "$tree"/{dev,proc,sys,run,tmp,root,mnt,data,usr/bin,usr/sbin,usr/lib,usr/lib64,etc,var/log,var/lib}
    chmod 1777 "$tree/tmp"
    for name in bin sbin lib lib64; do ln -s "usr/$name" "$tree/$name"; done
    ln -s ../run "$tree/var/run"

    cp packages/bin/busybox "$tree/usr/bin/busybox"
    packages/bin/busybox --list-full | while read -r applet; do
        applet=$tree/usr/${applet#usr/}
        [ -e "$applet" ] || ln -s /bin/busybox "$applet"
    done
    cp -r "$root/hack/guest/common/." "$root/hack/guest/vm/." "$tree/"
    rm "$tree/modules"
    for name in poweroff reboot halt; do ln -sf shutdown "$tree/usr/sbin/$name"; done
}

# A program at the same place in the guest, and the libraries that it links to.
add_program() {
    local tree=$1 program=$2 loader=packages/lib64/ld-linux-x86-64.so.2 libraries=packages/lib/x86_64-linux-gnu:packages/usr/lib/x86_64-linux-gnu name file
    cp "packages/$program" "$tree/$program"
    "$loader" --library-path "$libraries" --list "packages/$program" >needed ||
        die "$program does not find its libraries" "the list GUEST_PACKAGES in hack/guest-image.sh lacks a package"
    mkdir -p "$tree/usr/lib/x86_64-linux-gnu"
    while read -r name _ file _; do
        case $file in
            packages/lib64/*) ;; # the loader itself
            packages/*) cp -L "$file" "$tree/usr/lib/x86_64-linux-gnu/$name" ;;
            /*) die "$program needs $name, which would come from this machine" "add its package to GUEST_PACKAGES in hack/guest-image.sh" ;;
        esac
    done <needed
    cp -L "$loader" "$tree/usr/lib64/ld-linux-x86-64.so.2"
}

# The modules of hack/guest/vm/modules and what they depend on, with an index for modprobe.
add_modules() {
    local tree=$1 release=$2 kind module path needs
    packages/bin/busybox depmod -b "$PWD/packages" "$release"
    while read -r kind module; do
        case $kind in
            early | late) echo "$module" >>"$tree/etc/modules.$kind" ;;
            *) continue ;;
        esac
        IFS=: read -r path needs < <(grep -E "/$module\.ko:" "packages/lib/modules/$release/modules.dep" || true)
        [ -n "$path" ] || die "the kernel $release has no module $module" "remove it from hack/guest/vm/modules"
        for path in $path $needs; do
            (cd packages/lib/modules/"$release" && cp --parents "$path" "$OLDPWD/$tree/lib/modules/$release/")
        done
    done <"$root/hack/guest/vm/modules"
    packages/bin/busybox depmod -b "$PWD/$tree" "$release"
}

write_identity() {
    local tree=$1 release=$2
    echo virtshell-guest >"$tree/etc/hostname"
    echo '127.0.0.1 localhost' >"$tree/etc/hosts"
    echo 'root::0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
    printf 'root:x:0:\ntty:x:5:\n' >"$tree/etc/group"
    cat >"$tree/etc/os-release" <<OS
ID=virtshell-guest
ID_LIKE=debian
NAME="VirtShell guest"
PRETTY_NAME="VirtShell guest (Debian kernel $release)"
VERSION_ID=12
OS
}

make_initramfs() {
    local tree=$1
    # Not compressed: the guest would pay for unpacking at each start, emulated.
    (cd "$tree" && find . | sort | "$OLDPWD/packages/bin/busybox" cpio -o -H newc -R 0:0 2>/dev/null)
}

# --- the disk ------------------------------------------------------------------------------

# Little-endian bytes of a 32-bit number, as printf escapes.
le32() { printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255)); }

# One entry of an MBR: flag, type, first and number of MiB. Addressed by LBA, so CHS is all ones.
# shellcheck disable=SC2059 # the bytes are escapes in the format
partition() { printf "\\x$1\\xfe\\xff\\xff\\x$2\\xfe\\xff\\xff$(le32 $(($3 * 2048)))$(le32 $(($4 * 2048)))"; }

make_disk() {
    local image=$1 tools=$PWD/packages/usr/bin fat
    truncate -s "${DISK_MIB}M" disk.raw
    dd if=packages/usr/lib/syslinux/mbr/mbr.bin of=disk.raw conv=notrunc status=none
    { partition 80 0e $BOOT_AT_MIB $BOOT_MIB; partition 00 83 $DATA_AT_MIB $((DISK_MIB - DATA_AT_MIB)); } |
        dd of=disk.raw bs=1 seek=446 conv=notrunc status=none
    printf '\x55\xaa' | dd of=disk.raw bs=1 seek=510 conv=notrunc status=none

    fat=disk.raw@@${BOOT_AT_MIB}M
    export MTOOLSRC=/dev/null MTOOLS_SKIP_CHECK=1
    "$tools/mformat" -i "$fat" -v BOOT -H $((BOOT_AT_MIB * 2048)) -h 64 -s 32 -T $((BOOT_MIB * 2048)) -c 8 ::
    PATH=$tools:$PATH "$tools/syslinux" --offset $((BOOT_AT_MIB << 20)) --install disk.raw
    printf 'default guest\nprompt 0\ntimeout 0\nlabel guest\n  linux /vmlinuz\n  initrd /initrd.img\n  append %s\n' "$CMDLINE" >syslinux.cfg
    "$tools/mcopy" -i "$fat" vmlinuz initrd.img syslinux.cfg ::/

    mke2fs -q -t ext4 -L data -F -E offset=$((DATA_AT_MIB << 20)),lazy_itable_init=1 disk.raw $((DISK_MIB - DATA_AT_MIB))M
    qemu-img convert -f raw -O qcow2 disk.raw "$image"
}

# --- the installation medium ---------------------------------------------------------------

# The guest itself with a second initramfs: the start of the disk, which /usr/sbin/install-guest copies. The kernel of
# the guest has no driver for CD-ROMs, so the boot loader brings everything.
make_medium() {
    local image=$1
    mkdir -p payload/install medium/isolinux
    head -c "${DATA_AT_MIB}M" disk.raw | gzip -9 >payload/install/disk.gz
    make_initramfs payload >medium/install.img
    cp vmlinuz initrd.img medium/
    cp packages/usr/lib/ISOLINUX/isolinux.bin packages/usr/lib/syslinux/modules/bios/ldlinux.c32 medium/isolinux/
    printf 'default install\nprompt 0\ntimeout 0\nlabel install\n  linux /vmlinuz\n  initrd /initrd.img,/install.img\n  append %s\n' "$CMDLINE" \
        >medium/isolinux/isolinux.cfg
    genisoimage -quiet -R -V GUEST -b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table \
        -o "$image" medium
}

# --- build ---------------------------------------------------------------------------------

build() {
    local result=$1 packages=$2 release
    work=$(mktemp -d "$cache/.guest.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM HUP
    cd "$work"
    fetch_packages "$packages"
    unpack packages "$(kernel_package)" "${GUEST_PACKAGES[@]}" "${TOOL_PACKAGES[@]}"
    step "guest: file system and disk"
    release=$(basename packages/lib/modules/*)
    make_tree tree
    mkdir -p "tree/lib/modules/$release"
    add_program tree usr/sbin/qemu-ga
    add_program tree usr/sbin/dropbear
    add_modules tree "$release"
    write_identity tree "$release"
    make_initramfs tree >initrd.img
    mkdir result
    cp "packages/boot/vmlinuz-$release" vmlinuz
    make_disk result/guest.qcow2
    make_medium result/guest.iso
    mv vmlinuz initrd.img result/
    mv result "$result"
}

main() {
    local wanted packages result
    case ${1:-} in
        "") wanted=guest.qcow2 ;;
        --kernel) wanted=vmlinuz ;;
        --initrd) wanted=initrd.img ;;
        --cmdline) echo "$CMDLINE"; return ;;
        --iso) wanted=guest.iso ;;
        *) die "usage: hack/guest-image.sh [--kernel | --initrd | --cmdline | --iso]" ;;
    esac
    require_tools
    packages=$(package_list)
    mkdir -p "$cache"
    result=$cache/guest-$(inputs_hash "$packages")
    if [ ! -d "$result" ]; then
        exec 9>"$cache/.guest.lock"
        flock 9
        # What a killed build left: nobody else builds while we hold the lock.
        find "$cache" -maxdepth 1 -name '.guest.??????' -exec rm -rf {} +
        [ -d "$result" ] || (build "$result" "$packages")
    fi
    echo "$result/$wanted"
}

main "$@"
