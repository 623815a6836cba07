# Sourced by the download scripts.

# fetch FILE SHA256 URL: download a file unless it is there; the same call again goes on.
fetch() {
    local file=$1 sha256=$2 url=$3
    if [ -f "$file" ]; then
        echo "$file is there already"
        return
    fi
    mkdir -p "$(dirname "$file")"
    curl --fail --location --continue-at - --output "$file.part" "$url"
    if ! echo "$sha256  $file.part" | sha256sum --check --status; then
        rm "$file.part"
        echo "error: expected SHA-256 $sha256, got another file; it was removed, please try again" >&2
        exit 2
    fi
    mv "$file.part" "$file"
}
