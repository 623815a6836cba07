#!/usr/bin/env bash
# The published prompts and data sets; see --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/fetch.sh

HUB_COPY=instructpix2pix-clip-filtered

show_help() {
    cat <<END
usage: bash scripts/download_data.sh [--jobs N] [NAME]
       bash scripts/download_data.sh --parquet [clip-filtered-dataset]

Download the prompts, gpt-generated-prompts.jsonl and human-written-prompts.jsonl, to data/, and with NAME a
data set of image pairs to data/NAME: clip-filtered-dataset (436 GB) or random-sample-dataset (727 GB). Its
archives are unzipped, several at a time, and removed; data/NAME/.unzipped lists those that are done.
seeds.json comes last, so that programs see a data set only when it is whole. No checksums were published for
these files: archives are tested with unzip, the rest for being JSON.

  --parquet   the hub's copy of clip-filtered-dataset as parquet, checked by the hub's SHA-256, to
              data/$HUB_COPY; no prompts, and nothing from DATA_HOSTS
  --jobs N    archives that are unzipped at a time (default: one for each processor)
  -h, --help  this text
END
    environment_help
}

name="" parquet="" jobs=$(getconf _NPROCESSORS_ONLN)
while [ "$#" -gt 0 ]; do
    case $1 in
        --parquet) parquet=yes ;;
        --jobs)
            jobs=${2:-}
            [[ $jobs =~ ^[1-9][0-9]*$ ]] || misused "a number after --jobs" "$jobs"
            shift
            ;;
        -h | --help) show_help && exit ;;
        -*) misused "--parquet, --jobs N or a name" "$1" ;;
        *)
            [ -z "$name" ] || misused "one name" "$name and $1"
            [[ $1 =~ ^[A-Za-z0-9_][A-Za-z0-9._-]*$ ]] || misused "a name such as clip-filtered-dataset" "'$1'"
            name=$1
            ;;
    esac
    shift
done
if [ -n "$parquet" ] && [ "${name:-clip-filtered-dataset}" != clip-filtered-dataset ]; then
    misused "with --parquet clip-filtered-dataset, of which alone there is such a copy" "$name"
fi
need curl
[ -z "$name" ] || [ -n "$parquet" ] || need unzip
end_together

# Print path, bytes and SHA-256 of the parquet files, a line each.
list_parquet() {
    read_page "$HUB_HOSTS" "api/datasets/timbrooks/$HUB_COPY/tree/main/data" \
        '"type"|"(path|oid)": *"[^"]*"|"size": *[0-9]+' | awk -F '"' '
        function flush() {
            if (path ~ /\.parquet$/ && sum != "") print path, bytes, sum
            path = sum = ""
        }
        $2 == "type" { flush() }
        $2 == "path" { path = $4 }
        $2 == "oid" && length($4) == 64 { sum = $4 }
        $2 == "size" { bytes = $3; gsub(/[^0-9]/, "", bytes) }
        END { flush() }'
}

fetch_parquet() {
    local files path bytes sum folder=data/$HUB_COPY rest=0 count=0 failed=""
    files=$(list_parquet) || fail "the list of $HUB_COPY could not be had; please try again"
    [ -n "$files" ] || fail "expected parquet files and their SHA-256 in the list of $HUB_COPY, got none"
    mkdir -p "$folder"
    while read -r path bytes sum; do
        [ -f "$folder/${path##*/}" ] || rest=$((rest + bytes - $(size "$folder/${path##*/}.part")))
    done <<<"$files"
    say "$HUB_COPY: $(wc -l <<<"$files" | tr -d ' ') files, $(human "$rest") to download"
    need_space "$folder" "$rest" || exit 1
    while read -r path bytes sum; do
        fetch "$folder/${path##*/}" "$bytes" "$sum" "$HUB_HOSTS" \
            "datasets/timbrooks/$HUB_COPY/resolve/main/$path" || failed="$failed ${path##*/}"
        count=$((count + 1))
        say "$HUB_COPY: $count of $(wc -l <<<"$files" | tr -d ' ') files"
    done <<<"$files"
    [ -z "$failed" ] || fail "$HUB_COPY: failed:$failed; the same command again goes on"
}

# unpack ZIP: of `fetch_zips`, with its variables, in a shell of its own.
unpack() {
    end_together
    if run unzip -oqq "$folder/$1" -d "$folder" || [ "$?" = 1 ]; then  # 1 is a warning
        echo "$1" >>"$finished"
        rm -f "$folder/$1"
        say "$folder/$1: unzipped, $(grep -c . "$finished") of $count"
    else
        warn "error: $folder/$1 could not be unzipped"
    fi
}

fetch_zips() {
    local folder=data/$name finished=data/$name/.unzipped
    local pattern='href="[A-Za-z0-9_][A-Za-z0-9._-]*\.(zip|json)"'
    local files file bytes todo="" count=0 rest=0 largest=0 failed=""
    files=$(read_page "$DATA_HOSTS" "$name/" "$pattern" | cut -d '"' -f 2 | sort -u) ||
        fail "the list of $name could not be had; please try again"
    mkdir -p "$folder"
    touch "$finished"
    for file in $(grep '\.zip$' <<<"$files"); do
        count=$((count + 1))
        if grep -qxF "$file" "$finished"; then
            rm -f "$folder/$file"
            continue
        fi
        todo="$todo $file"
        bytes=$(remote_size "$DATA_HOSTS" "$name/$file")
        rest=$((rest + bytes))
        [ "$bytes" -le "$largest" ] || largest=$bytes
    done
    [ "$count" -gt 0 ] || fail "expected archives in the list of $name, got none"
    say "$folder: $count archives, $(human "$rest") to download and unzip"
    # Unzipped pictures take what the archives do, and some archives are there beside them.
    need_space "$folder" "$((rest + jobs * largest))" || exit 1
    for file in $todo; do
        while [ "$(jobs -pr | wc -l)" -ge "$jobs" ]; do run sleep 0.2; done
        if fetch "$folder/$file" 0 zip "$DATA_HOSTS" "$name/$file"; then unpack "$file" & fi
    done
    wait
    for file in $todo; do
        grep -qxF "$file" "$finished" || failed="$failed $file"
    done
    [ -z "$failed" ] || fail "$folder: failed:$failed; the same command again goes on"
    for file in $(grep '\.json$' <<<"$files" | grep -vx seeds.json) seeds.json; do
        fetch "$folder/$file" 0 json "$DATA_HOSTS" "$name/$file" || exit 1
    done
}

if [ -n "$parquet" ]; then
    fetch_parquet
    exit
fi
for file in gpt-generated-prompts.jsonl human-written-prompts.jsonl; do
    fetch "data/$file" 0 json "$DATA_HOSTS" "$file" || exit 1
done
[ -z "$name" ] || fetch_zips
