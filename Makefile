# Two commands do all the set-up: `make demo` and `make test`. Both make .venv once and reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NAME ?= epoch
ARGS ?=

.PHONY: help demo test test-lab lab types check style bench clean
help:            ## this list
	@grep -E '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:.*## /\t/'

$(VENV)/run: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/dev: $(VENV)/run
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/bench: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@

demo: $(VENV)/run        ## a tracker and three nodes train real MNIST on this machine
	$(BIN)/p2pnode demo $(ARGS)

test: $(VENV)/dev        ## the test suite
	$(BIN)/python -m pytest $(ARGS)

test-lab: $(VENV)/dev    ## real nodes behind real NATs, in network namespaces (Linux, root)
	$(BIN)/python -m pytest -m lab -rs tests/test_natlab*.py $(ARGS)

lab: $(VENV)/run         ## a shell with NATs of every kind to try things by hand (Linux, root)
	$(BIN)/python tests/natlab_shell.py

types:
	@mkdir -p build/types && ln -sfn ../.. build/types/p2pnode

check: $(VENV)/dev types ## style (ruff) and types (mypy --strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/dev       ## let ruff mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/bench     ## make bench NAME=epoch|delivery|accuracy|startup|relay|…
	$(BIN)/python bench/$(NAME).py $(ARGS)

clean:           ## remove what make made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
