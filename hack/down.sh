#!/usr/bin/env bash
# `make down`: stops what `make up` started and leaves guests alone: they run on, and `make up` finds them again.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/system.sh"

if [[ ! -d $STATE_DIR ]]; then
    say "nothing to stop: there is no $STATE_DIR"
    exit
fi
[[ -w $STATE_DIR ]] || die "$STATE_DIR is not yours to write" "sudo make down"
with_lock "$STATE_DIR/.lock" step "Stopping VirtShell; guests run on" bring_down
