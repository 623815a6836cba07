# Sourced by the download scripts: `fetch` and what they share. Bash 3.2 and the tools of macOS will do.

HUB_HOSTS=${HUB_HOSTS:-${HF_ENDPOINT:-https://huggingface.co} https://hf-mirror.com}
DATA_HOSTS=${DATA_HOSTS:-https://instruct-pix2pix.eecs.berkeley.edu}
STALL_SECONDS=${STALL_SECONDS:-60}
RETRY_SECONDS=${RETRY_SECONDS:-5}

environment_help() {
    cat <<END

A file comes in parts: FILE.part is on its way, FILE is complete and checked. The same command again goes on.
Exit code: 0 all is there, 1 something failed, 2 wrong usage.

environment:
  HUB_HOSTS      copies of the hub, tried in turn, separated by spaces; HF_ENDPOINT gives the first, too
                 (now: $HUB_HOSTS)
  DATA_HOSTS     the same for the published data (now: $DATA_HOSTS)
  STALL_SECONDS  a connection this long below 1000 bytes a second is given up (now: $STALL_SECONDS)
  RETRY_SECONDS  pause before another try (now: $RETRY_SECONDS)
END
}

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
fail() { warn "error: $*"; exit 1; }
misused() { warn "error: expected $1, got ${2:-nothing} (--help says more)"; exit 2; }

need() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null || fail "expected the program $tool, got none: please install it"
    done
}

# A signal ends this shell at once, and what it has started with it.
end_together() {
    trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
    trap 'exit 130' INT
    trap 'exit 143' HUP TERM
}

# run COMMAND...: bash heeds signals while it waits, but not while a command runs in the foreground.
run() {
    "$@" &
    wait "$!"
}

size() {
    if [ -f "$1" ]; then wc -c <"$1" | tr -d ' '; else echo 0; fi
}

sha256() {
    if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1
}

human() {
    awk -v n="$1" 'BEGIN {
        split("bytes kB MB GB TB PB EB", unit, " ")
        for (i = 1; n >= 1000 && i < 7; i++) n /= 1000
        printf(i == 1 ? "%d %s" : "%.1f %s", n, unit[i])
    }'
}

# need_space FOLDER BYTES
need_space() {
    local free
    free=$(df -Pk "$1" | awk 'NR > 1 { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+%$/) print $(i - 1) }')
    if [ -n "$free" ] && [ "$((free * 1024))" -lt "$2" ]; then
        warn "error: expected $(human "$2") of free disk in $1, got $(human $((free * 1024)))"
        return 1
    fi
}

# curl_from URL [OPTION...]: no step back from https to http, no endless wait. It takes the place of the shell
# that calls it (of a pipe or in the background), so that a signal to that shell reaches it.
curl_from() {
    local url=$1 protocols="=${1%%:*},https"
    shift
    exec curl --fail --location --show-error --proto "$protocols" --proto-redir "$protocols" \
        --connect-timeout 30 --speed-limit 1000 --speed-time "$STALL_SECONDS" "$@" "$url"
}

# read_page HOSTS PATH PATTERN: print what matches in a page of the first host where something does.
read_page() {
    local host url found
    for host in $1; do
        url=${host%/}/$2
        found=$(curl_from "$url" --silent --retry 2 --retry-delay "$RETRY_SECONDS" | grep -Eo "$3") || true
        if [ -n "$found" ]; then
            printf '%s\n' "$found"
            return 0
        fi
        warn "$url: no list of files there"
    done
    return 1
}

# remote_size HOSTS PATH: print the bytes of a file, 0 where no host says.
remote_size() {
    local host bytes
    for host in $1; do
        bytes=$(curl_from "${host%/}/$2" --silent --head 2>/dev/null | awk '
            /^HTTP\// { n = 0 }  # of the last of the redirects
            tolower($1) == "content-length:" { n = $2 + 0 }
            END { printf("%.0f", n) }')
        [ "$bytes" = 0 ] || break
    done
    echo "${bytes:-0}"
}

# is_right FILE BYTES CHECK: see `fetch`.
is_right() {
    [ -s "$1" ] || return 1
    [ "$2" = 0 ] || [ "$(size "$1")" = "$2" ] || return 1
    case $3 in
        zip) run unzip -tqq "$1" >/dev/null 2>&1 || [ "$?" = 1 ] ;;  # 1 is a warning
        json)
            case "$(head -c 1 "$1")$(tail -c 2 "$1" | tr -d '\0')" in
                '{'*'}' | '['*']') ;;
                *) return 1 ;;
            esac
            ;;
        *) [ "$(sha256 <"$1")" = "$3" ] ;;
    esac
}

# fetch FILE BYTES CHECK HOSTS PATH: download HOST/PATH, unless FILE is right already; 1 if that fails.
# BYTES is 0 where it is not known; CHECK is a SHA-256, or where none is known `zip` or `json`.
fetch() {
    local file=$1 bytes=$2 check=$3 hosts=$4 path=$5 part=$1.part host whole=""
    mkdir -p "$(dirname "$file")"
    wait_for_other
    if [ -f "$file" ]; then
        if is_right "$file" "$bytes" "$check"; then
            say "$file: there already"
            return 0
        fi
        mv "$file" "$file.bad"
        warn "$file: not the published file; kept as $file.bad"
    fi
    need_space "$(dirname "$file")" "$((bytes - $(size "$part")))" || return 1
    for host in $hosts; do
        if fetch_from "${host%/}/$path"; then return 0; fi
    done
    if [ -n "$whole" ]; then
        rm -f "$part"
        for host in $whole; do
            if fetch_from "$host"; then return 0; fi
        done
    fi
    warn "error: $file: no host gave it; the same command again goes on"
    return 1
}

# A download whose shell was killed may still be writing the part.
wait_for_other() {
    local before now told=""
    now=$(size "$part")
    while [ "$now" -gt 0 ]; do
        before=$now
        run sleep 1
        now=$(size "$part")
        [ "$now" -gt "$before" ] || break
        [ -n "$told" ] || say "$file: another download of it is at $(human "$now"), waiting for that"
        told=yes
    done
}

# fetch_from URL: of `fetch`, with its variables. A host has three tries in a row without a byte.
fetch_from() {
    local url=$1 left=3 before now status code fresh bar=--silent
    [ ! -t 2 ] || bar=--progress-bar
    fresh=$([ -s "$part" ] || echo yes)
    while [ "$left" -gt 0 ]; do
        before=$(size "$part") code=0 status=""
        if [ "$bytes" = 0 ] || [ "$before" -lt "$bytes" ]; then
            say "$file: from $url$([ "$before" = 0 ] || echo ", going on at $(human "$before")")"
            run curl_from "$url" "$bar" --max-filesize "$bytes" --continue-at - --output "$part" \
                --write-out '%{http_code}' >"$part.http" || code=$?
            read -r status <"$part.http" || true
        fi
        rm -f "$part.http"
        now=$(size "$part")
        if [ "$code" = 0 ] && [ "$now" = "$before" ] && [ "$now" -lt "$bytes" ]; then
            warn "$url: expected $bytes bytes, got a file of at most $now"
            return 1
        elif [ "$code" = 0 ]; then
            if is_right "$part" "$bytes" "$check"; then
                mv "$part" "$file" || return 1
                say "$file: complete, $(human "$now")"
                return 0
            fi
            warn "$url: expected $(expected), got another file; it was removed"
            rm -f "$part"
            [ -z "$fresh" ] || return 1
            fresh=yes  # its beginning may have been another host's
            continue
        fi
        case $code,$status in
            33,*) whole="$whole $url" && return 1 ;;  # it sends the whole file or nothing
            63,* | 22,40[0134567] | 22,41* | 22,45*) return 1 ;;
        esac
        if [ "$now" -gt "$before" ]; then left=3; else left=$((left - 1)); fi
        [ "$left" = 0 ] || run sleep "$RETRY_SECONDS"
    done
    return 1
}

expected() {
    case $check in
        zip) echo "a whole zip file" ;;
        json) echo JSON ;;
        *) echo "$bytes bytes of SHA-256 $check" ;;
    esac
}
