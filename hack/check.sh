#!/usr/bin/env bash
# `make check`: what can be said about the sources without running anything: format, lints, documentation.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"

scripts=(hack/*.sh hack/vscurl hack/guest-exec .ci/run)

go_format() {
    local unformatted
    have gofmt || { say "    no gofmt here: hack/controlplane was not looked at" && return; }
    unformatted=$(gofmt -l hack/controlplane)
    [[ -z $unformatted ]] || die "not formatted: $unformatted" "gofmt -w hack/controlplane"
}

for program in cargo shellcheck cc pkg-config; do
    have "$program" || die "$program is missing, which make check needs" "hack/packages.sh --test, as root"
done
step "Format: Rust" cargo fmt --all --check
step "Format: Go" go_format
step "Lints: shell" shellcheck "${scripts[@]}"
step "Lints: Rust" cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
RUSTDOCFLAGS="-D warnings" step "Documentation" cargo doc --workspace --no-deps --document-private-items --locked --quiet
