#!/usr/bin/env bash
# Prints the path of schemathesis, the program that fuzzes the gateway by its OpenAPI document; installs it into the cache when it is not
# there, from PyPI, in the versions of hack/schemathesis/requirements.txt.
#
# Environment:
#   VIRTSHELL_CACHE    where it is kept (default ~/.cache/virtshell)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

pypi_program schemathesis schemathesis
