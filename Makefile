# One target, one line. Needs Python 3.11 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
SERVABLE := .venv/.servable
READY := .venv/.installed
DEPLOYABLE := .venv/.deployable

# For development: open access, no TLS. A deployment runs `python -m messages_project` directly.
serve: export MESSAGES_ACCESS ?= open
serve: export PLAIN_HTTP ?= true
serve: export WITH_COMPANIONS ?= true
# The environment of a deployment, for Django's deployment checks.
deployment: export SECRET_KEY = a-key-of-this-check-alone-0123456789-abcdefghijklmnopqrstuvwxyz
deployment: export ALLOWED_HOSTS = api.example.com
deployment: export BIND = 0.0.0.0
deployment: export MESSAGES_ACCESS = keys
deployment: export PLAIN_HTTP = false

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

serve: $(SERVABLE) ## run the service on http://127.0.0.1:8000 (PORT and BIND change where)
	@$(BIN)/python -m messages_project

test: $(READY) ## run all tests (ARGS="-k health -x" chooses)
	@$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 $(ARGS)

unit: export WITHOUT_DATABASE = 1
unit: $(READY) ## run the tests that need neither a database nor a process of their own
	@$(BIN)/python -m pytest --quiet -m "not database and not process" $(ARGS)

check: lint types imports migrations openapi deployment ## lint, types, import contracts, migrations, OpenAPI, deployment checks
	@echo "All checks passed."

fix: $(READY) ## apply ruff's fixes and formatting
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format .

seed: $(SERVABLE) ## fill the database with 100,000 generated messages
	@$(BIN)/python manage.py seed --messages 100000 --recipients 1000 $(ARGS)

bench: $(READY) ## measure it against the usual version, and against PostgreSQL itself
	@$(BIN)/python -m benchmarks $(ARGS)

schema: $(READY) ## regenerate openapi.yaml from the code
	@$(BIN)/python manage.py spectacular --fail-on-warn --validate --file openapi.yaml

manage: $(SERVABLE) ## run a command of manage.py: make manage ARGS="createsuperuser"
	@$(BIN)/python manage.py $(ARGS)

containers: $(DEPLOYABLE) ## build the image and run both compose files, with podman
	@$(BIN)/python -m pytest -m slow tests/containers $(ARGS)

failover: $(DEPLOYABLE) ## kill and cut off PostgreSQL's leader under load (needs Patroni, etcd, HAProxy)
	@$(BIN)/python -m pytest -m slow tests/failover $(ARGS)

fuzz: $(READY) ## let Schemathesis try to break the API for 75 seconds (ARGS="--seed 7" for other requests)
	@$(BIN)/python -m tests.fuzz $(ARGS)

faults: $(READY) ## inject faults into the service under load, and compare its responses with its tables (ARGS="--server granian")
	@$(BIN)/python -m tests.faults $(ARGS)

coverage: $(READY) ## run all tests and report the lines that none of them executes
	@$(BIN)/coverage erase; $(BIN)/coverage run -m pytest $(ARGS) && $(BIN)/coverage combine --quiet && $(BIN)/coverage report

audit: $(READY) ## check the locked packages for known vulnerabilities
	@$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements.txt

lock: $(READY) ## recompile the locks from pyproject.toml (ARGS=--upgrade for newer versions)
	@$(BIN)/python -m pip install --quiet uv
	@$(COMPILE) pyproject.toml --extra granian --output-file requirements.txt
	@$(COMPILE) pyproject.toml --extra granian --extra embedded --constraints requirements.txt --output-file requirements-serve.txt
	@$(COMPILE) pyproject.toml --extra dev --extra granian --extra embedded --extra otel --constraints requirements-serve.txt --output-file requirements-dev.txt
	@$(COMPILE) pyproject.toml --extra granian --extra otel --constraints requirements-dev.txt --output-file requirements-otel.txt
	@$(COMPILE) pyproject.toml --extra deploy --constraints requirements-dev.txt --output-file requirements-deploy.txt
	@! grep -nE '://|^[-/]' requirements*.txt || { echo "The locks name a place of this machine; see above."; exit 1; }

clean: ## remove everything that make has installed; the data in .postgres stays
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache htmlcov .coverage*

# --- parts of the above

COMPILE = $(BIN)/uv --no-config pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header $(ARGS)

NPM = npm --prefix .venv --silent --no-package-lock --no-audit --no-fund --ignore-scripts

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . || { echo "'make fix' repairs what ruff can."; exit 1; }

types: $(READY)
	@$(BIN)/mypy

imports: $(READY)
	@$(BIN)/lint-imports

migrations: $(READY)
	@$(BIN)/python manage.py makemigrations --check --dry-run || { echo "A migration is missing: make manage ARGS='makemigrations messaging --name WHAT_IT_DOES'"; exit 1; }

openapi: $(READY)
	@$(BIN)/python manage.py spectacular --fail-on-warn --validate | diff -u openapi.yaml - || { echo "openapi.yaml differs from the code: run 'make schema' and look at the difference."; exit 1; }

deployment: $(READY)
	@$(BIN)/python manage.py check --deploy --fail-level WARNING

$(SERVABLE): requirements-serve.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed. Name one: make PYTHON=python3.13"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python's venv module is incomplete. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Installing what it needs to run into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-serve.txt
	@touch $@

$(READY): $(SERVABLE) requirements-dev.txt
	@echo "Installing what its tests need into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

$(DEPLOYABLE): $(READY) requirements-deploy.txt tests/clients/package.json
	@echo "Installing what tests of the deployment and of generated clients need into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-deploy.txt
	@if command -v npm >/dev/null; then cp tests/clients/package.json .venv/ && $(NPM) install; else echo "No npm: the TypeScript client is not tested."; fi
	@touch $@

.PHONY: help serve test unit check fix seed bench schema manage fuzz faults coverage audit lock clean lint types imports migrations openapi deployment containers failover
.DEFAULT_GOAL := help
