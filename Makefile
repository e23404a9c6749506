# `make` lists what there is; each target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-unit chaos bench soak check audit fuzz wheel check-wheel check-image lint format types schemas
.PHONY: lock clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/ready ## A virtual environment with the locked dependencies

$(VENV)/ready: tests/requirements.txt pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r tests/requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## Everything on this machine: NATS, a simulated vCenter, the bridge, a task of every fate
	$(BIN)/task-bridge demo

test: setup ## All tests, against a real nats-server and a simulated vCenter, some at a time
	$(BIN)/pytest -n 3 --dist worksteal

test-unit: setup ## The pure core alone, in seconds
	$(BIN)/pytest tests/unit

chaos: setup ## Seeded rounds of kills, outages and races, judged by a checker: ROUNDS=10 SEED=7 R=1 or 3
	PYTHONPATH=tests $(BIN)/python -m chaos.rounds

bench: setup ## Measures, and prints a table; ONLY="looks memory" measures some of it
	@PYTHONPATH=tests $(BIN)/python -m bench $(ONLY)

soak: setup ## Watches come and end at 200 a second, for as long as wanted: MINUTES=30
	@PYTHONPATH=tests MINUTES=$(MINUTES) $(BIN)/python -m bench soak

lint: setup ## Style, format and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

fuzz: setup ## 100,000 hostile requests at a whole bridge, each answered or rejected: COUNT=1000 SEED=7
	@PYTHONPATH=tests $(BIN)/python -m fuzz

audit: setup ## Asks whether weaknesses of the locked dependencies are known; needs the package index
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r deploy/requirements.txt

wheel: setup ## The wheel and the sdist, in dist
	rm -rf dist && $(BIN)/hatchling build -d dist

check-wheel: wheel ## The wheel alone, in an empty environment, runs the demo
	$(PYTHON) -m venv --clear dist/venv
	dist/venv/bin/pip install --quiet --require-hashes -r deploy/requirements.txt
	dist/venv/bin/pip install --quiet --no-deps "$$(echo dist/*.whl)[embedded]"
	umask 077 && mkdir dist/copy && cp -r .gitignore pyproject.toml README.md CHANGELOG.md LICENSE service dist/copy
	cd dist/copy && ../../$(BIN)/hatchling build -d ../again && cd ../again && for one in *; do cmp $$one ../$$one || exit 1; done
	dist/venv/bin/pip check
	cd dist && venv/bin/task-bridge schema event > event.json && venv/bin/task-bridge demo

check-image: wheel ## What the Dockerfile does, without Docker: as nobody in particular, in a tree that is read-only
	PYTHONPATH=tests $(BIN)/python -m deployment.image

types: setup ## Strict types
	$(BIN)/mypy service tests

check: lint types test ## What CI runs: lint, format, types, layers, tests

format: setup ## Formats the code
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

schemas: setup ## Writes the schema files and docs/events.md anew
	$(BIN)/python -m task_bridge.schemas
	PYTHONPATH=tests $(BIN)/python -m contract.reference > docs/events.md

lock: setup ## Locks the dependencies anew, with hashes
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --upgrade $(LOCK) --extra embedded --extra otel -o deploy/requirements.txt pyproject.toml
	$(BIN)/pip-compile --quiet --upgrade $(LOCK) --extra embedded --extra otel --extra testing -c deploy/requirements.txt -o tests/requirements.txt pyproject.toml tests/requirements.in

LOCK := --generate-hashes --strip-extras --allow-unsafe --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header

clean: ## Removes what was made here
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
