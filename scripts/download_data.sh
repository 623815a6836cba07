#!/usr/bin/env bash
# The published prompts and data sets; see --help. The work is done in stable_diffusion/ldm/downloads.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
export PYTHONPATH="stable_diffusion${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-$python}" -m ldm.downloads data "$@"
