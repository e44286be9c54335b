#!/usr/bin/env bash
# Prints the path of schemathesis, the program that fuzzes the gateway by its OpenAPI document; installs it into the cache when it is not
# there, from PyPI, in the versions of hack/schemathesis/requirements.txt.
#
# Environment:
#   VIRTSHELL_CACHE    where it is kept (default ~/.cache/virtshell)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly REQUIREMENTS=$REPO/hack/schemathesis/requirements.txt

main() {
    local directory
    directory=$CACHE_DIR/schemathesis-$(sha256sum "$REQUIREMENTS" | cut -c 1-12)
    [[ -x $directory/bin/schemathesis ]] || step "Installing schemathesis" install_into "$directory" >&2
    echo "$directory/bin/schemathesis"
}

# install_into DIRECTORY: where it is complete or not at all.
install_into() {
    mkdir -p "$CACHE_DIR"
    # A virtual environment knows its own path, so it is built in place, and what broke off before is removed.
    rm -rf "$1"
    trap 'rm -rf "$1"' ERR
    python3 -m venv "$1" || die "python3 cannot make a virtual environment" "apt-get install python3-venv"
    "$1/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$REQUIREMENTS" ||
        die "schemathesis could not be installed" "see pip's message above; it needs the way to PyPI or a mirror of it (PIP_INDEX_URL is honoured)"
    [[ -x $1/bin/schemathesis ]]
}

main "$@"
