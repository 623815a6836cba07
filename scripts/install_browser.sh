#!/usr/bin/env bash
# A browser for the tests of the apps: the system's own where there is one, else Debian's package where this user may
# install it, else the build that Playwright downloads.
#
#   bash scripts/install_browser.sh [PYTHON]    PYTHON has Playwright (default: .venv/bin/python)
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -q || true  # the list at hand may do
    if DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends chromium; then exit 0; fi
fi
exec "${1:-.venv/bin/python}" -m playwright install chromium
