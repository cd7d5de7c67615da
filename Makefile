# Stillroom: everything that a newcomer or CI types. Each target makes .venv first if it is not there.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
# Tests start hundreds of processes; where this is set, each of them would compile our modules anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test quick check fmt bench clean

help:            ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/demo: pyproject.toml constraints.txt
	@echo "installing into .venv; this takes a few minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[digits,plots]'
	@touch $@

.venv/test: pyproject.toml constraints.txt
	@echo "installing into .venv, with what the tests need; this takes a few minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch .venv/demo $@

demo: .venv/demo ## ingest digits, train a teacher from labels, cache its soft targets, train students, a table
	$(BIN)/cache build jobs/digits.ingest.toml
	$(BIN)/student train jobs/digits.teacher.toml
	$(BIN)/cache build jobs/digits.cache.toml
	$(BIN)/student train jobs/digits.students.toml

# Those of one file stay together, for they share what was costly to make. Slow ones wait as much as they compute, so one more than there
# are cores. Those that measure the memory of a process come last, two at a time.
MORE := $(shell expr 1 + $$(getconf _NPROCESSORS_ONLN))

test: .venv/test ## all tests
	$(BIN)/pytest -m 'not slow' -n auto
	$(BIN)/pytest -m 'slow and not alone' -n $(MORE) --dist loadfile
	$(BIN)/pytest -m alone -n 2 --dist loadfile

quick: .venv/test ## the tests without the slow ones
	$(BIN)/pytest -m 'not slow' -n auto

check: .venv/test ## linters, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: .venv/test ## format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

bench: .venv/test ## measure what is promised, against baselines in the same run
	$(BIN)/python -m tests.benchmarks

clean:           ## remove caches and runs of the demonstration, never yours elsewhere
	rm -rf caches runs
