#!/usr/bin/env bash
# What the tests need beside Python packages; see --help.
set -euo pipefail

case ${1:-} in
    -h | --help)
        cat <<'END'
usage: bash scripts/install_test_tools.sh [PYTHON]

Install what the tests need beside Python packages, unless it is there: Chromium for the pages, and the OpenMP library
of the language model. On Debian as root these are its packages; elsewhere the browser is Playwright's own build.

  PYTHON      a Python that has Playwright (default: .venv/bin/python)
  -h, --help  this text
END
        exit
        ;;
    -*) echo "error: expected a Python or nothing, got $1 (--help says more)" >&2 && exit 2 ;;
esac

has_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null
has_openmp() { [ "$(uname)" != Linux ] || /sbin/ldconfig -p | grep -q 'libgomp\.so\.1'; }

if has_browser && has_openmp; then exit 0; fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -q || true  # the list at hand may do
    DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends chromium libgomp1 || true
fi
has_openmp || echo "The tests that ask a language model will fail: install libgomp.so.1 (Debian: libgomp1)." >&2
has_browser || exec "${1:-.venv/bin/python}" -m playwright install chromium
