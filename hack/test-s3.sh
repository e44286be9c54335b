#!/usr/bin/env bash
# `make test-s3`: blobs in a bucket, on an S3 server: that of moto, from PyPI, in the versions of hack/moto/requirements.txt.
#
# Environment:
#   VIRTSHELL_CACHE    where the server is kept (default ~/.cache/virtshell)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"

hack/packages.sh --test
VIRTSHELL_S3_SERVER=$(pypi_program moto moto_server)
export VIRTSHELL_S3_SERVER
cargo test --locked --quiet -p virtshell-gateway --lib blobs::bucket
