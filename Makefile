# `make` lists the targets; each one sets up what it needs. `##` describes a main target, `#+` any other.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-unit chaos bench soak check audit fuzz wheel check-wheel check-image lint format types schemas
.PHONY: lock clean

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nOther targets:\n'
	@awk -F ':.*#[+] ' '/^[a-z-]+:.*#[+] / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/ready ## Create a virtual environment in .venv with the locked dependencies

$(VENV)/ready: tests/requirements.txt pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r tests/requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## Run NATS, a simulated vCenter and the bridge here, with a task of every outcome
	$(BIN)/task-bridge demo

test: setup ## Run all tests, against a real nats-server and a simulated vCenter; print the unit tests' coverage
	$(BIN)/pytest -n 3 --dist worksteal

check: lint types test ## Run what CI runs: lint, format, types, import layers and tests

test-unit: setup #+ Run the unit tests, in seconds; print their coverage
	$(BIN)/pytest tests/unit --cov --cov-report=term

chaos: setup #+ Run seeded rounds of kills, outages and races, judged by a checker: ROUNDS=10 SEED=7 R=1 (or 3)
	PYTHONPATH=tests $(BIN)/python -m chaos.rounds

bench: setup #+ Measure; print a table and write docs/figures.md: ONLY="looks memory" measures two parts
	@PYTHONPATH=tests $(BIN)/python -m bench $(ONLY)

soak: setup #+ Run 200 watches a second for a long time; write docs/figures.md: MINUTES=30
	@PYTHONPATH=tests MINUTES=$(MINUTES) $(BIN)/python -m bench soak

lint: setup #+ Check style, format and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

fuzz: setup #+ Send hostile requests to a whole bridge; each must be answered or rejected: COUNT=1000 SEED=7
	@PYTHONPATH=tests $(BIN)/python -m fuzz

audit: setup #+ Check the locked dependencies for known vulnerabilities; needs network access
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r deploy/requirements.txt

wheel: setup #+ Build the wheel and the sdist in dist
	rm -rf dist && $(BIN)/hatchling build -d dist

check-wheel: wheel #+ Install the wheel in an empty environment, and run the demo from it
	$(PYTHON) -m venv --clear dist/venv
	dist/venv/bin/pip install --quiet --require-hashes -r deploy/requirements.txt
	dist/venv/bin/pip install --quiet --no-deps "$$(echo dist/*.whl)[embedded]"
	umask 077 && mkdir dist/copy && cp -r .gitignore pyproject.toml README.md CHANGELOG.md LICENSE service dist/copy
	cd dist/copy && ../../$(BIN)/hatchling build -d ../again && cd ../again && for one in *; do cmp $$one ../$$one || exit 1; done
	dist/venv/bin/pip check
	cd dist && venv/bin/task-bridge schema event > event.json && venv/bin/task-bridge demo

check-image: wheel #+ Run the Dockerfile's steps without Docker: as an unprivileged user, in a read-only tree
	PYTHONPATH=tests $(BIN)/python -m deployment.image

types: setup #+ Check types
	$(BIN)/mypy service tests

format: setup #+ Format the code
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

schemas: setup #+ Write the generated files: JSON Schemas, docs/events.md, docs/figures.md
	$(BIN)/python -m task_bridge.schemas
	PYTHONPATH=tests $(BIN)/python -m contract.reference > docs/events.md
	PYTHONPATH=tests $(BIN)/python -m bench.figures

lock: setup #+ Lock the newest allowed dependencies, with hashes
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --upgrade $(LOCK) --extra embedded --extra otel -o deploy/requirements.txt pyproject.toml
	$(BIN)/pip-compile --quiet --upgrade $(LOCK) --extra embedded --extra otel --extra testing -c deploy/requirements.txt -o tests/requirements.txt pyproject.toml tests/requirements.in

LOCK := --generate-hashes --strip-extras --allow-unsafe --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header

clean: #+ Remove the virtual environment, dist and caches
	rm -rf $(VENV) dist .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
