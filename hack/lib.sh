# shellcheck shell=bash
# What the scripts of this directory share: words for the reader, background processes, ports, waiting.
#
# To be sourced, by scripts that run under `set -euo pipefail`. Everything said here goes to stderr, so that a script's stdout is
# its answer.

# A failure inside $(...) counts too.
shopt -s inherit_errexit

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034 # for the scripts that source this
STATE_DIR=$(realpath -m "${VIRTSHELL_STATE_DIR:-$REPO/.virtshell}")
# What takes long to build and does not depend on the state: the control plane's programs, guest images.
# shellcheck disable=SC2034
CACHE_DIR=$(realpath -m "${VIRTSHELL_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/virtshell}")
# What only root uses is not on the path of a shell that became root by a plain `su`. And where rustup puts cargo; a shell that has
# not been started anew since may not know.
PATH=$PATH:/usr/sbin:/sbin:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin

# --- Words ------------------------------------------------------------------------------------------------------------------------

say() { printf '%s\n' "$*" >&2; }

# die WHAT CURE: names what is wrong and what helps, and ends the script.
die() {
    say "error: $1"
    say "  cure: $2"
    exit 1
}

# step TEXT COMMAND...: says what is done now, does it, and says how long it took.
step() {
    local text=$1 started
    shift
    say "==> $text"
    started=$(now_ms)
    "$@"
    say "    $(seconds_since "$started") s"
}

now_ms() { echo "$((${EPOCHREALTIME//[.,]/} / 1000))"; }

# seconds_since MS: the seconds from a value of now_ms until now, with one decimal.
seconds_since() {
    local elapsed=$(($(now_ms) - $1))
    printf '%d.%d' $((elapsed / 1000)) $((elapsed % 1000 / 100))
}

# --- Conditions -------------------------------------------------------------------------------------------------------------------

have() { command -v "$1" >/dev/null; }

is_root() { [[ $EUID -eq 0 ]]; }

# older_than A B: whether version A comes before version B.
older_than() { [[ $1 != "$2" && $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1) == "$1" ]]; }

# need_space DIRECTORY MIB VARIABLE: dies when the file system that DIRECTORY is (or will be) on has less room; VARIABLE is what the user
# can set to use another one.
need_space() {
    local directory=$1 free
    while [[ ! -d $directory ]]; do directory=$(dirname "$directory"); done
    free=$(df --output=avail -BM "$directory" | tail -n 1 | tr -dc 0-9)
    ((free >= $2)) || die "$1 needs $2 MiB of free disk and has $free MiB" "make room, or set $3 to a directory with more"
}

# apt_install PACKAGE...: installs Debian packages, and removes none for them.
apt_install() {
    is_root || die "these packages are missing and only root can install them: $*" "run it as root once, or: sudo apt-get install $*"
    have apt-get || die "this is not a Debian machine (no apt-get), and these packages are missing: $*" "use Debian 12, or install their like by hand"
    apt_update
    apt_get install -y --no-install-recommends --no-remove "$@" >/dev/null ||
        die "these packages could not be installed: $*" "see apt's message above; it needs the way to a Debian mirror (http_proxy is honoured), and no other apt or dpkg running"
}

# apt_update: an index that some third-party source does not deliver may still be good enough, so what needs it decides.
apt_update() { apt_get update >/dev/null || say "apt-get update had errors (above); going on with the package lists that are there"; }

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=2 -o DPkg::Lock::Timeout=300 "$@"; }

# pypi_program DIRECTORY PROGRAM: prints the path of a program from PyPI, in the versions of hack/DIRECTORY/requirements.txt; installs
# it into the cache when it is not there.
pypi_program() {
    local requirements=$REPO/hack/$1/requirements.txt directory
    directory=$CACHE_DIR/$1-$(sha256sum "$requirements" | cut -c 1-12)
    [[ -x $directory/bin/$2 ]] || step "Installing $1" install_pypi "$directory" "$requirements" "$2" >&2
    echo "$directory/bin/$2"
}

# install_pypi DIRECTORY REQUIREMENTS PROGRAM: where it is complete or not at all.
install_pypi() {
    mkdir -p "$CACHE_DIR"
    # A virtual environment knows its own path, so it is built in place, and what broke off before is removed.
    rm -rf "$1"
    # shellcheck disable=SC2064 # the directory is fixed now
    trap "rm -rf '$1'" ERR
    python3 -m venv "$1" || die "python3 cannot make a virtual environment" "apt-get install python3-venv"
    "$1/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$2" ||
        die "$3 could not be installed" "see pip's message above; it needs the way to PyPI or a mirror of it (PIP_INDEX_URL is honoured)"
    [[ -x $1/bin/$3 ]]
}

# wait_until SECONDS COMMAND...: polls until the command succeeds; fails when the time is over.
wait_until() {
    local deadline=$(($(now_ms) + $1 * 1000))
    shift
    until "$@"; do
        (($(now_ms) < deadline)) || return 1
        sleep 0.05
    done
}

# with_lock FILE COMMAND...: runs the command (in a subshell) while no other caller holds the file's lock. File descriptor 9 carries
# the lock; start_process does not hand it down.
with_lock() (
    mkdir -p "$(dirname "$1")"
    exec 9>"$1"
    flock -n 9 || { say "waiting for another run that holds $1" && flock 9; }
    shift
    "$@"
)

# --- Processes --------------------------------------------------------------------------------------------------------------------
# A process that outlives its script is known by DIR/run/NAME: "PID START-TIME BOOT FINGERPRINT". The start time tells the process
# from a later one with the same id, the boot id from one before a reboot, the fingerprint whether program and arguments are still
# those that are wanted. The process writes the file itself before it becomes the program, so none runs unrecorded.

# start_process DIR NAME COMMAND...: runs the command in DIR, detached, with its output in DIR/logs/NAME.log. Nothing happens when it
# runs already; it is restarted when its program or arguments have changed.
start_process() {
    local dir=$1 name=$2 fingerprint pid
    shift 2
    fingerprint=$(fingerprint "$dir" "$@")
    mkdir -p "$dir/run" "$dir/logs"
    if is_running "$dir" "$name"; then
        [[ $(cut -d ' ' -f 4 "$dir/run/$name") != "$fingerprint" ]] || return 0
        stop_process "$dir" "$name"
    fi
    rm -f "$dir/run/$name"
    (
        cd "$dir" || exit
        pid=$BASHPID # not inside $(...), which is a process of its own
        echo "$pid $(start_time "$pid") $(boot_id) $fingerprint" >"run/.$name"
        mv "run/.$name" "run/$name"
        exec setsid "$@" 9>&-
    ) >>"$dir/logs/$name.log" 2>&1 </dev/null &
    wait_until 5 test -e "$dir/run/$name" || die "$name could not be started" "see $dir/logs/$name.log"
}

# fingerprint DIR COMMAND...: changes when the program file, an argument, or a kubeconfig that one names does.
fingerprint() {
    local dir=$1 argument
    shift
    {
        stat -L -c '%i %s %Y' "$(command -v "$1")"
        printf '%s\0' "$@"
        for argument in "$@"; do
            [[ $argument != *.kubeconfig ]] || (cd "$dir" && cat "${argument#*=}")
        done
    } | sha256sum | cut -c 1-16
}

# stop_process DIR NAME [SECONDS]: asks it to end and kills it when it has not after 15 s. Succeeds also when nothing ran.
stop_process() {
    local pid
    if pid=$(process_id "$1" "$2"); then
        kill -TERM "$pid" 2>/dev/null || true
        wait_until "${3:-15}" is_stopped "$1" "$2" || kill -KILL "$pid" 2>/dev/null || true
        wait_until 5 is_stopped "$1" "$2" || die "$2 (pid $pid) does not end" "look at it with: ps -fp $pid"
    fi
    rm -f "$1/run/$2"
}

is_running() { process_id "$1" "$2" >/dev/null; }

is_stopped() { ! is_running "$1" "$2"; }

# process_id DIR NAME: prints the id of the process when it lives.
process_id() {
    local pid started boot _
    [[ -r $1/run/$2 ]] || return 1
    read -r pid started boot _ <"$1/run/$2" || return 1
    [[ $boot == "$(boot_id)" && $(start_time "$pid") == "$started" ]] || return 1
    echo "$pid"
}

# start_time PID: prints the process's start in clock ticks since boot; nothing for one that is gone or only waits to be reaped.
start_time() {
    local stat fields
    { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
    # The program's name, in parentheses, may hold spaces; field 3 (state) follows it, field 22 is the start time.
    read -ra fields <<<"${stat##*) }"
    # One whose main thread has ended may have others (field 20) that still hold its ports.
    [[ ${fields[0]} == [ZX] && ${fields[17]} -le 1 ]] || echo "${fields[19]}"
}

boot_id() { cat /proc/sys/kernel/random/boot_id; }

# --- Ports ------------------------------------------------------------------------------------------------------------------------

# choose_port DIR NAME VARIABLE DEFAULT [WHICH]: prints the port that process NAME of DIR shall listen on: what the environment's
# VARIABLE says, else what it was last time, else DEFAULT. "auto" or 0 stands for a free one, the same one each time. Dies when
# something else listens there. WHICH tells the ports of a process with several apart.
choose_port() {
    local dir=$1 name=$2 variable=$3 value=${!3:-} file=$1/run/$2${5:+-$5}.port last=''
    mkdir -p "$dir/run"
    [[ ! -s $file ]] || last=$(<"$file")
    if [[ $value == auto || $value == 0 ]]; then
        if [[ -n $last ]] && { is_running "$dir" "$name" || port_is_free "$last"; }; then
            value=$last
        else
            value=$(free_port)
        fi
    fi
    value=${value:-${last:-$4}}
    if [[ ! $value =~ ^[0-9]{1,5}$ ]] || ((value > 65535)); then
        die "$variable=$value is not a port" "set it to a number up to 65535, or to auto"
    elif ! port_is_free "$value" && ! { [[ $value == "$last" ]] && is_running "$dir" "$name"; }; then
        die "port $value is taken by $(port_owner "$value")" "end that process, or set $variable to another port (auto: a free one)"
    fi
    echo "$value" >"$file"
    echo "$value"
}

# free_port: prints a port nobody listens on, below the range from which the kernel serves outgoing connections.
free_port() {
    local port
    for _ in {1..100}; do
        port=$((20000 + RANDOM % 12000))
        if port_is_free "$port"; then
            echo "$port"
            return
        fi
    done
    die "no free port found between 20000 and 32000" "name free ports instead of auto"
}

port_is_free() { [[ -z $(ss -Hltn "sport = :$1") ]]; }

# port_owner PORT: "pid 123 (nginx)", as far as this user may know it.
port_owner() {
    local owner
    owner=$(ss -Hltnp "sport = :$1" | sed -nE 's/.*users:\(\("([^"]+)",pid=([0-9]+).*/pid \2 (\1)/p' | head -n 1)
    echo "${owner:-another process}"
}
