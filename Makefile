# Everything happens in .venv, which is made on first use; no MPI and no active environment is needed.
#
#   make bench BENCH_ARGS="--help"      make test PYTEST_ARGS="-k replay -x"      make bench PYTHON=python3.12

PYTHON ?=
NP ?= 4
BENCH_ARGS ?=
PYTEST_ARGS ?=
# Most tests wait for processes: two at a time take a little more than half the time of one after the other.
TEST_WORKERS ?= 2
SOAK_TIMEOUT_S ?= 3600

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LINT_READY := $(VENV)/.lint-ready

# Scripts in a virtual environment hold its absolute path: set up again when the checkout has moved.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(READY): moved
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup bench test soak lint format check clean moved

help:
	@echo "make bench    run the benchmarks on $(NP) ranks (NP=, BENCH_ARGS=)"
	@echo "make test     run the tests with reduced counts, $(TEST_WORKERS) at a time (TEST_WORKERS=, PYTEST_ARGS=)"
	@echo "make soak     run the tests with full counts"
	@echo "make lint     ruff check, ruff format --check, mypy --strict"
	@echo "make format   let ruff format the code and fix what it safely can"
	@echo "make check    lint and test"
	@echo "make setup    only make the virtual environment $(VENV)"
	@echo "make clean    remove $(VENV), caches and build output"

$(READY): pyproject.toml tools/make_venv.sh
	sh tools/make_venv.sh $(VENV) "$(PYTHON)"
	$(BIN)/python -m pip install -e ".[mpi,fast,test]"
	@printf '%s\n' "$(CURDIR)" > $@

$(LINT_READY): $(READY)
	$(BIN)/python -m pip install -e ".[lint]"
	@touch $@

setup: $(READY)

bench: $(READY)
	$(BIN)/mpiexec -n $(NP) $(BIN)/chronolog bench $(BENCH_ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

soak: $(READY)
	CHRONOLOG_SOAK=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal --timeout=$(SOAK_TIMEOUT_S) $(PYTEST_ARGS)

lint: $(LINT_READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy --strict py_chronolog_client chronolog_hpc

format: $(LINT_READY)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# One after the other, also under make -j: lint's verdict is quick, and tests measure time.
check:
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory test

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +
