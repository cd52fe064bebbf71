# Shared by the scripts of ci/: where things are, how progress is said, and apt with sources of its own.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE=$ROOT/.cache/lab
APT_LOCK_SECONDS=200

# step WHAT: one line of visible progress, with the seconds since the script began.
step() { printf '\n==> [%3ds] %s\n' "$SECONDS" "$*"; }

# die WHY: says what went wrong and leaves.
die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# beside NAME COMMAND...: begins it, with what others leave of the processors. `join NAME` waits for it, shows what it has said, and
# fails as it did; `end_beside` ends all that is left.
declare -A BESIDE=()
beside() {
    local name=$1 log
    shift
    log=$(mktemp)
    # A group of its own, to be ended as a whole.
    set -m
    nice -n 10 "$@" >"$log" 2>&1 </dev/null &
    set +m
    BESIDE[$name]="$! $log"
}

join() {
    local process log status=0
    read -r process log <<<"${BESIDE[$1]}"
    unset "BESIDE[$1]"
    wait "$process" || status=$?
    cat "$log"
    rm -f "$log"
    return $status
}

end_beside() {
    local name process log
    for name in "${!BESIDE[@]}"; do
        read -r process log <<<"${BESIDE[$name]}"
        kill -- "-$process" 2>/dev/null || true
        rm -f "$log"
    done
}

# as_root COMMAND...: runs it as root, directly or through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root and there is no sudo; run as root: $*"
    fi
}

# apt_private [OTHER]: fills APT with the arguments that point apt at package lists of our own: for this Debian, or for
# another CPU (arm64, ...) or Debian 13, of which packages are looked at and downloaded only.
# The machine's own lists and sources stay as they are, and backports never reach its other upgrades.
apt_private() {
    local other=${1:-} private=$CACHE/apt${1:+-$1}
    mkdir -p "$private/lists/partial" "$private/archives/partial"
    APT=(-q
        -o "Dir::State::lists=$private/lists"
        -o "Dir::Cache::archives=$private/archives"
        -o "APT::Keep-Downloaded-Packages=false"
        -o "APT::Sandbox::User=root"
        -o "DPkg::Lock::Timeout=$APT_LOCK_SECONDS"
        -o "Acquire::Retries=3")
    case $other in
    '' | debian13) ;;
    *) APT+=(-o "APT::Architecture=$other" -o "APT::Architectures=$other") ;;
    esac
    [ -z "$other" ] || APT+=(-o "Dir::State::status=/dev/null")
    if [ ! -s "$private/sources.list" ]; then
        apt_sources "$other" >"$private/sources.new"
        [ -s "$private/sources.new" ] || die "apt has no Debian source for $(codename); configure one first"
        mv "$private/sources.new" "$private/sources.list"
    fi
    APT+=(-o "Dir::Etc::sourcelist=$private/sources.list" -o "Dir::Etc::sourceparts=-")
    # Lists of another day name packages that the mirror no longer has.
    if [ -z "$(find "$private/updated" -mmin -720 2>/dev/null)" ]; then
        apt-get "${APT[@]}" update
        touch "$private/updated"
    fi
}

# apt_sources [OTHER]: the machine's own mirrors of this Debian release, with backports added; for another CPU the
# release alone, and Debian 13 from where this release's packages are.
apt_sources() {
    local keys='' base suite own
    own=$(codename)
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] &&
        keys='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] '
    apt-get update --print-uris -o "Dir::State::lists=$CACHE/apt/lists" | cut -d"'" -f2 |
        sed -n "s,^\(.*\)/dists/\(${own}[^/]*\)/InRelease\$,\1 \2,p" |
        while read -r base suite; do
            case ${1:-$suite} in
            debian13)
                [ "$suite" != "$own" ] || printf "deb $keys$base %s main\n" trixie trixie-backports
                ;;
            "$suite")
                echo "deb $keys$base $suite main"
                [ "$suite" != "$own" ] || echo "deb $keys$base $suite-backports main"
                ;;
            *) [ "$suite" != "$own" ] || echo "deb $keys$base $suite main" ;;
            esac
        done | sort -u
}

codename() {
    # shellcheck source=/dev/null
    (. /etc/os-release && echo "${VERSION_CODENAME:-unknown}")
}
