# GNU make and a POSIX shell. `make` alone lists the targets.
#   PYTHON=...  the interpreter that makes the environment
#   ARGS=...    passed on to the command of `demo`, `test`, `bench` and `soak`

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup aot demo test lint format bench soak notebooks clean

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_BENCH := $(VENV)/.ready-bench
READY_AOT := $(VENV)/.ready-aot
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
PYTEST = $(BIN)/python -m pytest -q
BENCH = driver_overhead mixture_samplers certify_peers kalman_filters variational_steps

# An interpreter named on the command line is used or refused, never replaced by another.
ifeq ($(origin PYTHON),command line)
CANDIDATES := $(PYTHON)
else
CANDIDATES := $(PYTHON) python3.12 python3.13 python3.14 python3 python
endif

# A candidate must run, be new enough and be able to make an environment.
SUITS := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))
REPORT := import sys; print("Python", sys.version.split()[0], "(too old)" if sys.version_info < (3, 12) else "(without venv and ensurepip)")

define MAKE_VENV
if ! $(BIN)/python -c '$(SUITS)' >/dev/null 2>&1; then \
  found=; \
  for candidate in $(CANDIDATES); do \
    if "$$candidate" -c '$(SUITS)' >/dev/null 2>&1; then found=$$candidate; break; fi; \
  done; \
  if [ -z "$$found" ]; then \
    echo "jaxinf needs Python 3.12 or later with venv and pip; these were tried:"; \
    for candidate in $(CANDIDATES); do \
      came=$$("$$candidate" -c '$(REPORT)' 2>/dev/null) || came="not there, or does not run"; \
      echo "  $$candidate: $$came"; \
    done; \
    echo "Install one, for example by one of"; \
    echo "  uv python install 3.12"; \
    echo "  pyenv install 3.12"; \
    echo "  apt install python3.12 python3.12-venv   (Debian, Ubuntu)"; \
    echo "  brew install python@3.12                 (macOS)"; \
    echo "  an installer from python.org"; \
    echo "and name it: make setup PYTHON=/path/to/python3.12"; \
    exit 1; \
  fi; \
  echo "Making $(VENV) with $$found"; \
  "$$found" -m venv --clear $(VENV); \
fi
endef

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## make .venv and install jaxinf with its development tools

$(READY): pyproject.toml constraints.txt
	@$(MAKE_VENV)
	@rm -f $(READY) $(READY_BENCH) $(READY_AOT)
	@echo "Installing jaxinf into $(VENV) (a minute or more the first time)"
	@$(INSTALL) -e '.[dev]'
	@touch $@

$(READY_BENCH): $(READY)
	@$(INSTALL) -e '.[dev,bench]'
	@$(INSTALL) --no-deps k-diffusion # its samplers need none of its training code's packages
	@touch $@

$(READY_AOT): $(READY)
	@$(INSTALL) -e '.[dev,aot]'
	@touch $@

aot: $(READY_AOT) ## install the compiler for NVIDIA GPUs, so that `make test` compiles for them too

demo: $(READY) ## train a score model on digits, sample it, write a report under runs/
	@$(BIN)/jaxinf run experiments/digits_diffusion.py $(ARGS)

# A file's tests stay on one worker, so that they share its compiled programs and fixtures.
test: $(READY) ## run the tests; ARGS="tests/core -k noise" chooses some
	@$(PYTEST) -n 2 --dist loadfile -m "not soak" $(ARGS)

lint: $(READY) ## check style, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyrefly check

format: $(READY) ## mend style and format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: $(READY_BENCH) ## hold drivers and samplers against other libraries; BENCH="driver_overhead" runs one
	@for study in $(BENCH); do $(BIN)/jaxinf run experiments/$$study.py $(ARGS) || exit 1; done

soak: $(READY) ## run the tests that take minutes
	@XLA_FLAGS= $(PYTEST) -m soak $(ARGS)

notebooks: $(READY) ## execute every notebook anew, in place
	@for notebook in notebooks/*.ipynb; do \
	  [ -e "$$notebook" ] || continue; \
	  JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/jupyter-execute --inplace "$$notebook" || exit 1; \
	done

clean: ## remove .venv, caches and builds; runs/ stays
	@rm -rf $(VENV) build dist .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
