# avatarcast: every target does its own set-up. `make serve` and `make test` are all a newcomer needs.
#
#   make serve                    set up .venv, start the server with the embedded tiny checkpoint
#   make serve ARGS="--port 9000" pass options to `avatarcast serve`
#   make test                     system packages, test packages, the whole default suite
#   make soak | bench | lint | clean

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# Tests that judge real time have the machine to themselves; all others may share it.
ALONE := tests/e2e/test_presenter.py tests/e2e/test_command_client.py tests/interop
TOGETHER := $(filter-out $(ALONE),$(wildcard tests/e2e/test_*.py)) $(addprefix tests/,house parity property unit)
# The first interpreter that is new enough; `make serve PYTHON=/path/to/python3.12` overrides it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

.PHONY: help serve test soak bench lint clean system-packages

help:
	@sed -n '3,6s/^# \{0,2\}//p' Makefile

serve: $(VENV)/.installed
	$(BIN)/avatarcast serve $(ARGS)

# First what may share the machine, on all cores (what fails there gets a second chance alone, since many tests wait for
# real time); then what needs the machine to itself, one after the other. Both always run.
test: system-packages $(VENV)/.installed-test
	mkdir -p artifacts
ifneq ($(strip $(ARGS)),)
	$(BIN)/python -m pytest $(ARGS)
else
	@status=0; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile $(TOGETHER) || \
		$(BIN)/python -m pytest --last-failed --last-failed-no-failures none $(TOGETHER) || status=$$?; \
	$(BIN)/python -m pytest $(ALONE) || status=$$?; \
	exit $$status
endif

soak: system-packages $(VENV)/.installed-test
	mkdir -p artifacts
	$(BIN)/python -m pytest -m soak --timeout 0 $(ARGS)

bench: $(VENV)/.installed
	$(BIN)/avatarcast bench live $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

system-packages:
	@tests/system-packages.sh

# The stamps are newer than pyproject.toml once pip has run, so a second start skips pip altogether.
$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "avatarcast needs Python 3.11 or newer and found none: install one (Debian, Ubuntu:" \
		"'apt-get install python3.11 python3.11-venv') or name it with 'make PYTHON=/path/to/python3'." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "avatarcast needs Python 3.11 or newer," \
		"but $(PYTHON) is $$($(PYTHON) -V 2>&1): name a newer one with 'make PYTHON=/path/to/python3'." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module: install it (Debian," \
		"Ubuntu: 'apt-get install python3-venv') and run make again." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "Setting up $(VENV): a few hundred megabytes of packages, usually one to four minutes."
	$(BIN)/python -m pip install --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[test]'
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) artifacts output build dist *.egg-info
