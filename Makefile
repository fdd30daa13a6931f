# make demo      sets up what it needs and runs the main job on SQLite
# make test      sets up and runs every test
# make embedded  those that need no server
# make mysql     those of MySQL on MySQL itself, from Debian's unstable, where `make test` has MariaDB
# make check     format, lint, types
# make docs      the table of what each driver promises
# make bench     everything beside its peers, in docs/benchmarks.md; QUICK=1: in three minutes, for a look
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 3

.PHONY: demo test embedded mysql check docs bench binary clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

test: $(VENV)/.developing
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

embedded: $(VENV)/.developing
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not server' $(ARGS)

mysql: $(VENV)/.developing .mysql/mysqld
	KVSTORE_TEST_MYSQLD=$(CURDIR)/.mysql/mysqld $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -k mysql $(ARGS)

.mysql/mysqld:
	.ci/mysql .mysql

check: $(VENV)/.developing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed
	$(BIN)/python docs/capabilities.py

# PARTS="memory redis": those alone, apart from the results of a whole run.
bench:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make bench PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m benchmarks.environments
	@test -x .mysql/mysqld || .ci/mysql .mysql || echo "MySQL itself could not be had: its part is left out"
	@.bench-venv/base/bin/python -m benchmarks $(if $(QUICK),--quick) $(PARTS)

# A program frozen by PyInstaller carries its one driver and no client library of another.
binary: $(VENV)/.developing
	$(BIN)/python tests/frozen_binary.py

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "venv is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

$(VENV)/.installed: $(VENV)/bin/pip pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.developing: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --group dev
	@touch $@

clean:
	rm -rf $(VENV) .mysql .bench-venv benchmarks/node/node_modules .demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
