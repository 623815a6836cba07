#!/usr/bin/env bash
# A browser for the tests of the apps: the system's own where there is one, else Debian's package where this user may
# install it, else the build that Playwright downloads; see --help.
set -euo pipefail

case ${1:-} in
    -h | --help)
        cat <<'END'
usage: bash scripts/install_browser.sh [PYTHON]

Install Chromium for the tests of the apps, unless there is one.

  PYTHON      a Python that has Playwright (default: .venv/bin/python)
  -h, --help  this text
END
        exit
        ;;
    -*) echo "error: expected a Python or nothing, got $1 (--help says more)" >&2 && exit 2 ;;
esac

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -q || true  # the list at hand may do
    if DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends chromium; then exit 0; fi
fi
exec "${1:-.venv/bin/python}" -m playwright install chromium
