# `make help` lists what there is. Everything runs in a virtual environment of its own, made when it is needed.

VENV ?= .venv
RUN := $(VENV)/bin/python
# The first of these that is Python 3.11 or newer.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; \
	done)
# Pip's chatter about itself and its cache helps nobody here.
PIP := $(RUN) -m pip --disable-pip-version-check --quiet install

# Hundreds of processes start from the same files: each would compile them anew where this is set.
unexport PYTHONDONTWRITEBYTECODE

PYTEST := $(RUN) -m pytest --durations=12
# So many processes, each with services of its own, file by file, in the order of tests/conftest.py. Tests of a whole
# system have the machine for themselves: a demo that starts beside two others starves what has a second to answer.
WORKERS ?= 2
SPREAD := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Those that wait for half of their time keep two cores busy by three.
WAITERS ?= 3
# What claims nothing of the machine's pace takes the time that the tests with processes, pauses and deadlines leave
# idle, and takes it from none of them. So that what it says stays together, it is shown a command at a time.
BESIDE := -j2 --output-sync=line --no-print-directory PATIENTLY="nice -n 19"
# Two lanes on two cores now and then starve a process that has a second to answer: what failed is asked once more, at
# once, and named in the summary (RERUN). What fails twice fails.
AGAIN := --reruns 1 -rfER
TESTS := test-timely test-patient-postgres test-patient
ON_POSTGRES := $(RUN) -m tests.servers postgres $(PYTEST) -q $(AGAIN) --only-database -m "not system and not long"
# Django's own commands need a key and a database, whatever they do with them.
DJANGO = SGM_SECRET_KEY=only-for-checks SGM_DATABASE_URL=sqlite:///:memory: $(PATIENTLY) $(RUN) manage.py

.DEFAULT_GOAL := help
.PHONY: help demo demo-reset test test-timely test-patient test-patient-postgres test-quick test-all coverage mutation lint types migrations-check check services bench-latency bench-edge bench-lines bench-backlog bench-sync bench-telemetry bench-api bench-loop bench-console

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

demo: $(VENV)/.demo-installed ## run the whole system with simulated devices, until Ctrl-C
	@exec $(RUN) -m smartgrid.demo

demo-reset: $(VENV)/.demo-installed ## forget all that the demo has kept; the next `make demo` begins anew
	@$(RUN) -m smartgrid.demo reset

test: $(VENV)/.dev-installed services ## the suite with real services on SQLite, its database part on PostgreSQL too
	@$(MAKE) $(BESIDE) $(TESTS)

test-timely:
	$(PYTEST) -q $(AGAIN) -m "not system" --patient not $(SPREAD) -n $(WAITERS)
	$(PYTEST) $(AGAIN) -m system
	$(ON_POSTGRES) --patient not $(SPREAD)

test-patient:
	$(PATIENTLY) $(PYTEST) -q $(AGAIN) -m "not system" --patient only $(SPREAD)

test-patient-postgres:
	$(PATIENTLY) $(ON_POSTGRES) --patient only $(SPREAD)

test-quick: $(VENV)/.dev-installed ## what needs no service, in about three minutes
	HYPOTHESIS_PROFILE=quick $(PYTEST) -m "not services and not system and not long" --simulation-steps 100 \
		$(SPREAD)

test-all: test ## `make test` and the long runs
	HYPOTHESIS_PROFILE=long $(PYTEST) -q tests/core
	$(PYTEST) -q -s tests/simulation/test_machine.py --simulation-steps 10000
	$(PYTEST) -q -s tests/runtime/test_crash_points.py --every-crash-point
	$(PYTEST) -q -s tests/runtime/test_loop_sockets.py --every-seed
	$(PYTEST) -q tests/browser --every-look
	$(RUN) -m tests.servers postgres $(PYTEST) --only-database

coverage: $(VENV)/.dev-installed ## that no branch of edge/core goes untested
	HYPOTHESIS_PROFILE=quick $(PATIENTLY) $(RUN) -m coverage run -m pytest -q tests/core
	$(RUN) -m coverage report

mutation: $(VENV)/.dev-installed ## whether the core's tests notice a changed core, in a quarter of an hour
	@.ci/mutation $(RUN)

lint: $(VENV)/.dev-installed ## style, format, who may import whom, and the device types with their page
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(VENV)/bin/lint-imports --no-cache
	$(RUN) -m edge profiles check
	$(RUN) -m edge profiles document --check

types: $(VENV)/.dev-installed ## mypy, strict, tests included
	SGM_SECRET_KEY=only-for-checks $(PATIENTLY) $(RUN) -m mypy .

migrations-check: $(VENV)/.dev-installed ## Django's checks, and that no migration is missing
	$(DJANGO) check
	$(DJANGO) makemigrations --check --dry-run

check: lint services ## exactly what CI runs
	@$(MAKE) $(BESIDE) $(TESTS) types migrations-check coverage

bench-latency: $(VENV)/.dev-installed services ## from a PUT to the register, beside the floor of the same run
	@exec $(RUN) -m bench.latency

bench-edge: $(VENV)/.dev-installed services ## one node with up to 2,000 devices, beside a bare polling loop
	@exec $(RUN) -m bench.edge

bench-backlog: $(VENV)/.dev-installed services ## a week of logs drains beside live commands
	@exec $(RUN) -m bench.backlog

bench-sync: $(VENV)/.dev-installed services ## schedules to 1,000 and 3,000 nodes, what they send, a broker that restarts
	@exec $(RUN) -m bench.sync $(BENCH_SYNC)

bench-telemetry: $(VENV)/.dev-installed services ## readings of 500 nodes into PostgreSQL, and the means of a quarter hour
	@exec $(RUN) -m bench.telemetry

bench-api: $(VENV)/.dev-installed services ## lists and details of 100,000 devices under 20 concurrent clients
	@exec $(RUN) -m bench.api

bench-console: $(VENV)/.dev-installed services ## the console's fleet page with 200 sites and 2,000 devices
	@exec $(RUN) -m bench.console

bench-lines: $(VENV)/.dev-installed ## what a dead device costs those beside it, over TCP and at 9600 baud
	@exec $(RUN) -m bench.lines

bench-loop: $(VENV)/.dev-installed ## the closed loop on simulated plants, beside the physical bound and other controllers
	@exec $(RUN) -m bench.closed_loop

services: # Redis, mosquitto, PostgreSQL, HAProxy and Chromium for the tests, installed where they are missing and we may
	@.ci/services

# --- environments: a stamp each, so that later starts find nothing to do ---------------------------------------

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: set PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: requirements.txt requirements-demo.txt edge/requirements.txt | $(VENV)/bin/python
	@echo "Installing what the demo needs ..."
	@$(PIP) -r requirements-demo.txt
	@touch $@

$(VENV)/.dev-installed: requirements-dev.txt clients/python/pyproject.toml $(VENV)/.demo-installed | $(VENV)/bin/python
	@echo "Installing what tests and checks need ..."
	@$(PIP) -r requirements-dev.txt
	@touch $@
