# The whole set-up: `make help` lists the targets, README.md names the two that a newcomer needs.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
# Options for torch's own installation, e.g. TORCH_ARGS='--index-url ...' for another build than your index's default.
TORCH_ARGS ?=
WORKERS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
# The extras whose code the tests run.
TESTED := dev,docs,hub,onnx,attributions,train,export,loggers,ray
# The extra "bench" as a list for pip install --no-deps; pyproject.toml says why.
PEERS = $$($(PYTHON) -c 'import tomllib; \
  print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"])')

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# Nothing below fetches a model, and a hub call without a network waits for up to a minute before it fails.
export HF_HUB_OFFLINE := 1

.PHONY: help venv demo test lint format docs bench defences constraints clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@echo "  PYTHON=python3.12 chooses the interpreter, WORKERS=4 the test processes, ARGS='...' goes to pytest, bench or defences."

venv: $(VENV)/.installed ## the environment alone, in .venv

demo: $(VENV)/.installed ## fool the embedded model, offline; pictures in demo/
	@$(BIN)/python -m sparring demo --out demo

# One thread for each worker: two processes of two threads each on two cores ran four times slower than alone.
test: export OMP_NUM_THREADS := 1
test: export OMP_WAIT_POLICY := PASSIVE
test: lint ## lint, format, types, then the tests with the coverage floor
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --cov --cov-report= $(ARGS)

lint: $(VENV)/.installed-test ## lint, format and type checks
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted as above: run 'make format'." >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary

format: $(VENV)/.installed ## mend the format and what the linter can mend
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

docs: $(VENV)/.installed-docs ## the documentation, in docs/_build/html
	@$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(VENV)/.installed-bench benchmarks/__main__.py ## the benchmarks, beside the peers
	@$(BIN)/python -m benchmarks $(ARGS)

defences: $(VENV)/.installed benchmarks/defences.py ## the table of defences, naive and adaptive
	@$(BIN)/python -m benchmarks.defences $(ARGS)

clean: ## remove what the other targets made, .venv apart
	@rm -rf demo build dist docs/_build .coverage .coverage.* htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	@rm -rf $(VENV)

# What a fresh environment resolves to today, torch's own pin kept. Left out: builds (2.13.0+cpu), where a package came
# from, and what torch pins by itself on machines with a GPU.
constraints: ## renew constraints.txt (torch's pin is changed by hand, in that file)
	@rm -rf build/pins && $(PYTHON) -m venv build/pins
	@build/pins/bin/python -m pip install -qq $(TORCH_ARGS) $(TORCH)
	@echo $(TORCH) >build/pins/torch.txt
	@build/pins/bin/python -m pip install -qq -c build/pins/torch.txt '.[$(TESTED),docs]'
	@build/pins/bin/python -m pip install -qq --no-deps $(PEERS)
	@{ echo "# What the tests ran with. Written by 'make constraints'; torch's line is the one that is changed by hand."; \
	   build/pins/bin/python -m pip freeze --exclude sparring \
	   | sed -E -e 's/^torch(==| @ ).*/$(TORCH)/' -e '/^(nvidia-|cuda-|triton)/d' -e 's/\+[a-z0-9.]+$$//'; } >build/pins/new.txt
	@! grep -n '[@/]' build/pins/new.txt || { echo "constraints.txt is left as it was: the lines above are no versions." >&2; exit 1; }
	@mv build/pins/new.txt constraints.txt && rm -rf build/pins

# torch goes first and alone: in an empty environment a loose requirement brings gigabytes of another build.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "sparring needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo 'not found')." >&2; \
	  echo "Name another one: make PYTHON=python3.11 $(or $(MAKECMDGOALS),venv)" >&2; exit 1; }
	@echo "Setting up $(VENV) (once, and when pyproject.toml or constraints.txt change; a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH_ARGS) $(TORCH)
	@$(PIP) -e '.[dev,hub]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@$(PIP) -e '.[$(TESTED)]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@$(PIP) -e '.[docs]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@$(PIP) --no-deps $(PEERS)
	@touch $@
