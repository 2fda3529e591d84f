# Everything runs in .venv; `make setup` is the only target that installs.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

# Two OpenMP threads were slow and erratic beside other processes: see docs/decisions/007-*.md.
export OMP_NUM_THREADS := 1

.PHONY: help setup run test bench bench-formats bench-precisions bench-tasks bench-accuracy bench-ablation bench-gate bench-training faults support lint types format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(READY)  ## create .venv and install qexport, its backends and the test tools into it

# A candidate has to start, be new enough and carry ensurepip: a pyenv shim or Debian without python3-venv does not.
# torch and torchvision go first, together and from one index: builds of two indices do not fit, and what is resolved
# after them keeps these. `make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu` takes CPU builds, a tenth in size.
$(READY): pyproject.toml constraints.txt
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  for python in python3.11 python3; do \
	    if $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then \
	      echo "creating $(VENV) with $$python"; $$python -m venv --clear $(VENV) && exit 0; exit 1; \
	    fi; \
	  done; \
	  echo "no usable Python: install Python 3.10 or later and its venv module (Debian: apt-get install python3-venv)" >&2; \
	  exit 1; \
	fi
	$(PY) -m pip install --quiet torch==2.13.0 torchvision==0.28.0 -c constraints.txt $(TORCH_INDEX:%=--index-url %)
	$(PY) -m pip install --quiet -e '.[all,dev]' -c constraints.txt
	@# A nightly build, which may be gone one day: without it a few tests are skipped, with a reason.
	@$(PY) -m pip install --quiet --no-deps 'tflite-micro==0.dev20261023182759' || echo "without tflite-micro" >&2
	@$(PY) -c 'from qexport.compat.torchvision import advice; print(advice())' || true
	@touch $@

run: setup  ## the main job on the embedded default: model, data set and report
	$(VENV)/bin/qexport demo

# Two processes, a file of tests at a time: most of what the tests run keeps one core busy.
test: setup  ## all tests
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: setup  ## measure the main job on the real models in ../shared, against the bounds
	$(PY) benchmarks/main_job.py

bench-formats: setup  ## compare ONNX, OpenVINO and TensorRT files with Ultralytics' own exports
	$(PY) benchmarks/against_incumbent.py

bench-precisions: setup  ## measure TFLite's other precisions on the real YOLO26n
	$(PY) benchmarks/precisions.py

bench-tasks: setup  ## measure INT8 of every task on the demo models
	$(PY) benchmarks/tasks.py

bench-accuracy: setup  ## measure how near INT8 is to FP32 on the real models, effort by effort
	$(PY) benchmarks/accuracy.py

bench-ablation: setup  ## measure what each range estimator and each pass is worth on the real models
	$(PY) benchmarks/ablation.py

bench-gate: setup  ## run the demo export twenty times against its own first report: equal figures must pass
	$(PY) benchmarks/gate_noise.py

faults: setup  ## end runs by signals at each step of the walk and look at the next (fewer: TIMES=1 STEPS=onnx.lower)
	$(PY) benchmarks/faults.py $(TIMES:%=--times %) $(STEPS:%=--steps %) $(SIGNALS:%=--signals %)

bench-training: setup  ## measure a step of quantisation-aware training on the real models: seconds and memory
	$(PY) benchmarks/training.py

support: setup  ## export untrained models of every architecture and write the README's table of them (of some: ROWS=…)
	$(PY) benchmarks/support.py $(ROWS)

lint: setup  ## style
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup  ## types
	$(PY) -m mypy

format: setup  ## rewrite the code in house style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove what the other targets made, .venv included
	rm -rf $(VENV) build dist runs qexport_out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
