# make edit    edits imgs/example.jpg by a written instruction with the embedded model
# make test    runs the tests
# make check   runs those that take no server, browser or long training: a minute and a half
# Each makes .venv on first use and installs what it needs there; the second call starts at once.
#
#   make edit EDIT="give him a beard" INPUT=me.jpg OUTPUT=me-with-beard.jpg
#   make test ARGS="tests/test_frame.py -v"
#   make PYTHON=python3.14 test
#   make edit TORCH_INDEX=URL    takes torch from another index, such as PyTorch's own of builds without CUDA

PYTHON ?= python3
EDIT ?= add sunglasses
INPUT = imgs/example.jpg
OUTPUT = imgs/output.jpg
ARGS =
TORCH_INDEX =
# Recipes read these from the environment, so that quotes and apostrophes in them stay text.
export PYTHON EDIT INPUT OUTPUT TORCH_INDEX

VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: edit test check lint clean
.DELETE_ON_ERROR:

edit: $(VENV)/installed-edit
	@$(VENV)/bin/python edit_cli.py --input "$$INPUT" --output "$$OUTPUT" --edit "$$EDIT"
	@echo "The edited picture: $$OUTPUT"

test: $(VENV)/installed-test
	@$(VENV)/bin/python -m pytest $(ARGS)

check: $(VENV)/installed-test
	@$(VENV)/bin/python -m pytest -m "not slow" $(ARGS)

lint: $(VENV)/installed-test
	@$(VENV)/bin/python -m ruff check .
	@$(VENV)/bin/python -m ruff format --check .
	@$(VENV)/bin/python -m mypy
	@$(VENV)/bin/python -m codespell_lib

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info

# Of one index come all packages that must fit torch; what the other lines of a file ask for is then there already.
from_torch_index = $(if $(TORCH_INDEX),$(PIP) install --index-url "$$TORCH_INDEX" $$(grep -hE '^torch(vision)?==' $(1)))

# Each file below is written last, so an interrupted install goes on where it stopped at the next call.
$(VENV)/installed-test: $(VENV)/installed-edit requirements-test.txt requirements-no-deps.txt
	@echo "Installing what training and the tests need into $(VENV), once."
	@$(call from_torch_index,requirements.txt requirements-test.txt)
	@$(PIP) install -r requirements-test.txt
	@$(PIP) install --no-deps -r requirements-no-deps.txt
	@bash scripts/install_test_tools.sh $(VENV)/bin/python
	@touch $@

$(VENV)/installed-edit: $(VENV)/made requirements.txt pyproject.toml
	@echo "Installing what editing needs into $(VENV), once: several GB, most of it torch."
	@$(call from_torch_index,requirements.txt)
	@$(PIP) install -r requirements.txt
	@$(PIP) install --no-deps -e .
	@touch $@

# The recipe asks before anything is written: is it a Python, one the project runs on, one that can make a venv?
$(VENV)/made:
	@command -v "$$PYTHON" >/dev/null || \
	    { echo "error: expected Python 3.10 to 3.14, found no $$PYTHON; name one: make PYTHON=python3.11" >&2; exit 2; }
	@"$$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 15))' || \
	    { echo "error: expected Python 3.10 to 3.14, got $$("$$PYTHON" --version 2>&1) as $$PYTHON;" \
	           "name another one: make PYTHON=python3.11" >&2; exit 2; }
	@"$$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "error: $$PYTHON cannot make a virtual environment: its module ensurepip is missing" \
	           "(on Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@"$$PYTHON" -m venv $(VENV)
	@echo "$(CURDIR)" > $@

# An editable install points at the folder it was made for: a project that was moved or copied installs again.
ifneq ($(shell cat $(VENV)/made 2>/dev/null),$(CURDIR))
.PHONY: $(VENV)/made
endif
