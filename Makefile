# The commands a person needs. The first use of any of them sets up .venv.
PYTHON ?= python3.11
BIN := .venv/bin
SPACE ?= quick

.PHONY: search serve test test-long test-cluster lint ui clean setup

search: .venv/ready
	$(BIN)/python tune/search.py --space $(SPACE) $(ARGS)

# OpenMP threads that wait must not spin: the other process needs the cores.
test: .venv/ready lint
	OMP_WAIT_POLICY=passive $(BIN)/pytest -n 2 --dist worksteal $(ARGS)

test-long: .venv/ready
	$(BIN)/pytest -m long $(ARGS)

test-cluster: .venv/ready
	$(BIN)/pytest -m cluster -rs $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve: .venv/ready
	$(BIN)/serve run serve.app:build $(ARGS)

ui: .venv/ready
	$(BIN)/mlflow ui --backend-store-uri "sqlite:///$${SMALLM_HOME:-runs}/mlflow/mlflow.db"

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[mlflow-server,openml,serve,tune]" --group dev
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps --group baselines
	touch $@

clean:
	rm -rf .venv "$${SMALLM_HOME:-runs}"
