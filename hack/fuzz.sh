#!/usr/bin/env bash
# `make fuzz`: for half an hour, sends the gateway what its OpenAPI document allows and what it does not, and then feeds its parsers
# nonsense. `make test` does a minute of both. Fails with the request or the value that shows a bug.
#
#   fuzz.sh [SECONDS]    how long to send requests (1800)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"

hack/packages.sh --test
hack/controlplane.sh bin >/dev/null
VIRTSHELL_SCHEMATHESIS=$(hack/schemathesis.sh)
export VIRTSHELL_SCHEMATHESIS VIRTSHELL_FUZZ_SECONDS=${1:-1800}
step "Building the tests" cargo test --locked --quiet --no-run -p virtshell-gateway
step "Requests, for $VIRTSHELL_FUZZ_SECONDS s" cargo test --locked --quiet -p virtshell-gateway --test virtshell schemathesis -- --nocapture
PROPTEST_CASES=100000 step "Parsers" cargo test --locked --quiet -p virtshell-gateway --lib properties_of_parsers
