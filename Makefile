# The one task entry. `make` lists the targets; ARGS="..." is passed on to the program behind a target.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv.peers
STAMP := $(VENV)/.ready
ARGS ?=

# The first interpreter that is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$python"; break; }; done)

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z][a-zA-Z0-9_-]*:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile
	@echo '  ARGS="..." is passed on: make demo ARGS="--orders 5000 --kills 20"'

.PHONY: demo
demo: $(STAMP) ## place orders, kill processes, count what arrived
	@$(BIN)/outbox-relay demo $(ARGS)

.PHONY: test
test: $(STAMP) ## run the tests on real PostgreSQL and Kafka
	@$(BIN)/python -m pytest $(ARGS)

.PHONY: test-sqlalchemy20
test-sqlalchemy20: requirements.lock ## run the writing side's tests on the oldest SQLAlchemy we support
	@"$(PYTHON)" -m venv .venv.sqlalchemy20
	@.venv.sqlalchemy20/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements.lock
	@.venv.sqlalchemy20/bin/python -m pip --disable-pip-version-check install --quiet --no-deps "sqlalchemy==2.0.30"
	@.venv.sqlalchemy20/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --editable .
	@.venv.sqlalchemy20/bin/python -m pytest tests/write tests/storage $(ARGS)

.PHONY: disasters
disasters: $(STAMP) ## fail a pair of PostgreSQL servers over under load, again and again, and judge what arrived
	@$(BIN)/python -m tests.relay.disaster.campaign $(ARGS)

.PHONY: test-postgres
test-postgres: $(STAMP) ## run the database's tests on PostgreSQL VERSION=14 (to 18), fetched once
	@programs=$$($(BIN)/python -m outbox.testing.servers.postgres_versions "$(VERSION)") && \
		env -u OUTBOX_DATABASE_URL OUTBOX_POSTGRES_BIN="$$programs" \
		$(BIN)/python -m pytest tests/storage tests/relay/database tests/relay/test_ring.py \
		tests/relay/disaster/test_rebase.py tests/relay/kafka/test_killed.py \
		tests/consumer/test_exactly_once.py tests/consumer/test_parking.py tests/consumer/test_crash.py $(ARGS)

.PHONY: test-pgbouncer
test-pgbouncer: $(STAMP) ## run the pooler's tests behind a PgBouncer that holds prepared statements, fetched once
	@program=$$($(BIN)/python -m outbox.testing.servers.pgbouncer_newer) && \
		OUTBOX_PGBOUNCER="$$program" $(BIN)/python -m pytest tests/relay/pooler $(ARGS)

.PHONY: torture
torture: $(STAMP) ## torture consumers of every protocol on three brokers, ten minutes each: ARGS="--seconds 60"
	@$(BIN)/python -m tests.consumer.torture $(ARGS)

.PHONY: campaign-hops
campaign-hops: $(STAMP) ## four services in a row, everything killed for SECONDS=300 with SEED=1, each hop counted
	@OUTBOX_HOPS_SECONDS=$(or $(SECONDS),300) OUTBOX_HOPS_SEED=$(or $(SEED),1) \
		$(BIN)/python -m pytest -n0 -q tests/consumer/test_hops.py

.PHONY: campaign-pipe
campaign-pipe: $(STAMP) ## kill brokers under pipes and count the results (ARGS="--seconds 240 --brokers 3")
	@$(BIN)/python -m tests.consumer.pipe_campaign $(ARGS)

.PHONY: campaign-shards
campaign-shards: $(STAMP) ## change the number of shards under writers, kills and crashes: ARGS="--seconds 600"
	@$(BIN)/python -m tests.relay.sharding.campaign $(ARGS)

.PHONY: campaign-transactional
campaign-transactional: $(STAMP) ## kill and freeze brokers and relays in mode transactional (ARGS="--seconds 600 --brokers 3")
	@$(BIN)/python -m tests.relay.kafka.campaign $(ARGS)

.PHONY: check
check: $(STAMP) ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(STAMP) ## rewrite the code as `make check` wants it
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: bench
bench: $(STAMP) ## measure against a raw read-and-send loop
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: campaign-scheduled
campaign-scheduled: $(STAMP) ## move scheduled events while backends are killed, and count (ARGS="--seconds 600")
	@$(BIN)/python -m tests.relay.scheduled.campaign $(ARGS)

.PHONY: bench-peers
bench-peers: $(STAMP) $(PEERS)/.ready ## measure against other relays, installed into .venv.peers
	@$(BIN)/python -m benchmarks.peers $(ARGS)

.PHONY: event-router
event-router: $(STAMP) $(PEERS)/.ready ## compare the kept records of Debezium's Event Router with a real one (ARGS="--record")
	@$(BIN)/python -m tests.consumer.event_router $(ARGS)

# The peers' own environment: pinned Python packages and, where Maven is, Debezium on Kafka Connect.
$(PEERS)/.ready: benchmarks/peers/requirements.txt benchmarks/peers/pom.xml
	@"$(PYTHON)" -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r benchmarks/peers/requirements.txt
	@cp benchmarks/peers/pom.xml $(PEERS)/pom.xml
	@if command -v mvn >/dev/null; then mvn --batch-mode --quiet --file $(PEERS)/pom.xml \
		dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=jars; \
	else echo "Maven is not on this machine, so Debezium is left out (Debian: apt install maven)" >&2; fi
	@touch $@

.PHONY: outage
outage: $(STAMP) ## keep Kafka away for ten minutes and see what that costs
	@$(BIN)/python -m tests.relay.outages $(ARGS)

.PHONY: lock
lock: ## resolve requirements.lock anew (needs uv)
	uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --group dev --upgrade \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
		--custom-compile-command "make lock" --quiet --output-file requirements.lock

.PHONY: clean
clean: ## remove the environment and caches
	rm -rf $(VENV) $(PEERS) .venv.sqlalchemy20 dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# The environment: made by pip alone, from pinned and hashed packages; brought up to date when the lock or the project
# changes, in place, so that what runs from it goes on running.
$(STAMP): requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer was found. Install one (Debian 12 and later: apt install python3 python3-venv)," >&2; \
		echo "or name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is older than Python 3.11. Name a newer one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) cannot create virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Preparing $(VENV) (once for each requirements.lock)" >&2
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements.lock
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --editable .
	@touch $(STAMP)
