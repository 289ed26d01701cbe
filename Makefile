# `make` builds the virtual environment; `make help` lists the rest.

PYTHON ?= python3
# Where it is found (pyenv keeps it where no PATH leads), the unit tests run on it too.
PYTHON_NEXT ?= $(shell python3.13 -c '' 2>/dev/null && echo python3.13 || \
  ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.13.*/bin/python3.13 2>/dev/null | tail -n 1)

VENV := .venv
VENV_NEXT := .venv-next
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check --quiet install
# The editable install asks nothing of the network: the build backend is in the lock.
INSTALL_SELF := $(PIP) --no-build-isolation --no-deps --editable .

PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
UNIT_S_MAX := 900
SUITE_S_MAX := 3600

export PYTHONUNBUFFERED := 1

.PHONY: all help demo test lint format bench lock clean test-packages load-packages bench-packages

all: $(VENV)/.runtime ## Build .venv with fleetcast and fleetcast-sim (the default)
	@echo "Ready: $(BIN)/fleetcast and $(BIN)/fleetcast-sim"

help: ## Show this
	@echo "make TARGET, one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  %-8s %s\n", $$1, $$2 }'

demo: $(VENV)/.runtime ## Run gateway, origin and 50 devices, and update them (DEMO_ARGS="--once --json")
	@$(BIN)/python ops/demo/demo.py $(DEMO_ARGS)

bench: $(VENV)/.runtime bench-packages ## Measure beside other programs (BENCH_ARGS="--only fanout --json", "--help")
	@$(BIN)/python ops/bench/bench.py $(BENCH_ARGS)

test: lint $(VENV)/.schemathesis test-packages ## Check everything and run all tests (PYTEST_ARGS="-k name")
	timeout $(SUITE_S_MAX) $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)
	@if [ -n "$(PYTHON_NEXT)" ]; then \
	  $(MAKE) --no-print-directory $(VENV_NEXT)/.test && \
	  echo "The unit tests on $$($(VENV_NEXT)/bin/python --version):" && \
	  timeout $(UNIT_S_MAX) $(VENV_NEXT)/bin/python -m pytest -n 2 -p no:cacheprovider tests/unit; \
	else echo "No Python 3.13 here: the unit tests ran on $$($(BIN)/python --version) alone."; fi

lint: $(VENV)/.test ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lock: ## Resolve the locks in requirements/ again (needs uv)
	uv pip compile -q --generate-hashes --universal --python-version 3.11 --no-annotate --upgrade \
	  --custom-compile-command "make lock" pyproject.toml requirements/build.in --extra gateway --extra sim \
	  --output-file requirements/runtime.lock
	uv pip compile -q --generate-hashes --universal --python-version 3.11 --no-annotate --upgrade \
	  --custom-compile-command "make lock" --constraint requirements/runtime.lock --group test \
	  --output-file requirements/test.lock
	uv pip compile -q --generate-hashes --universal --python-version 3.11 --no-annotate --upgrade \
	  --custom-compile-command "make lock" --constraint requirements/runtime.lock \
	  --constraint requirements/test.lock --group schemathesis --output-file requirements/schemathesis.lock

clean: ## Remove what was built and cached
	rm -rf $(VENV) $(VENV_NEXT) .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made only where it is missing: a new lock is installed over the old.
$(BIN)/python $(BIN)/pip &:
	@ops/dev/venv $(PYTHON) $(VENV)

$(VENV_NEXT)/bin/python $(VENV_NEXT)/bin/pip &:
	@ops/dev/venv $(PYTHON_NEXT) $(VENV_NEXT)

$(VENV)/.runtime: requirements/runtime.lock pyproject.toml | $(BIN)/python $(BIN)/pip
	@echo "Installing fleetcast into $(VENV) ..." >&2
	@$(BIN)/python $(PIP) --require-hashes --requirement requirements/runtime.lock
	@$(BIN)/python $(INSTALL_SELF)
	@touch $@

$(VENV)/.test: requirements/test.lock $(VENV)/.runtime
	@$(BIN)/python $(PIP) --require-hashes --requirement requirements/test.lock
	@touch $@

$(VENV)/.schemathesis: requirements/schemathesis.lock $(VENV)/.test
	@$(BIN)/python $(PIP) --require-hashes --requirement requirements/schemathesis.lock
	@touch $@

$(VENV_NEXT)/.test: requirements/runtime.lock requirements/test.lock pyproject.toml | $(VENV_NEXT)/bin/python $(VENV_NEXT)/bin/pip
	@echo "Installing fleetcast into $(VENV_NEXT) ..." >&2
	@$(VENV_NEXT)/bin/python $(PIP) --require-hashes --requirement requirements/runtime.lock
	@$(VENV_NEXT)/bin/python $(PIP) --require-hashes --requirement requirements/test.lock
	@$(VENV_NEXT)/bin/python $(INSTALL_SELF)
	@touch $@

test-packages: load-packages
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || ops/dev/packages postgresql
	@command -v systemd-analyze >/dev/null 2>&1 && command -v systemd-socket-activate >/dev/null 2>&1 || \
	  ops/dev/packages systemd

# What the bench's load and its origin need.
load-packages:
	@command -v cc >/dev/null 2>&1 || ops/dev/packages gcc libc6-dev
	@PATH="$$PATH:/usr/sbin"; command -v nginx >/dev/null 2>&1 || ops/dev/packages nginx

bench-packages: load-packages
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || ops/dev/packages postgresql
	@ls /usr/lib/nginx/modules/ngx_nchan_module.so >/dev/null 2>&1 || ops/dev/packages libnginx-mod-nchan
	@command -v pushpin >/dev/null 2>&1 || ops/dev/packages pushpin
