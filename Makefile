# Everything runs in .venv, which `make setup` installs; lock, audit, sbom, dist and docs have tools of their own in build/.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
TOOLS := build/tools
SITE := build/site-tools
WEB := build/web

# Two OpenMP threads were slow and erratic beside other processes: see docs/decisions/007-*.md.
export OMP_NUM_THREADS := 1

# What is measured is not taken from an earlier run.
bench bench-%: export QEXPORT_CACHE := /dev/null

.PHONY: help setup lock audit sbom dist docs reference run test bench bench-formats bench-precisions bench-tasks bench-accuracy bench-ablation bench-gate faults web bench-snippets bench-install bench-interop bench-limits bench-sweep bench-training bench-processes bench-runs bench-profile tables fuzz support lint types format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(READY)  ## create .venv and install qexport, its backends and the test tools into it

# A candidate has to start, be new enough and carry ensurepip: a pyenv shim or Debian without python3-venv does not.
define create_environment
@if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
  for python in python3.11 python3.12 python3.13 python3; do \
    if $$python -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; then \
      echo "creating $(1) with $$python"; $$python -m venv --clear $(1) && exit 0; exit 1; \
    fi; \
  done; \
  echo "no usable Python: install Python 3.11, 3.12 or 3.13 and its venv module (Debian: apt-get install python3-venv)" >&2; \
  exit 1; \
fi
endef

# What is in a lock is taken by its hash, and nothing that is not in it; a wheel runs no code when it is installed.
LOCKED := -m pip install --quiet --no-deps --only-binary :all: --require-hashes -r

# torch and torchvision, with what a CUDA build brings, have no hashes here: their index is the user's choice. They come
# together and from one index: builds of two indices do not fit. `make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu`
# takes CPU builds, a tenth in size. `pip check` fails where the lock lacks something that this platform needs.
$(READY): pyproject.toml constraints.txt locks/qexport.txt locks/tflite-micro.txt
	$(call create_environment,$(VENV))
	$(PY) $(LOCKED) locks/qexport.txt
	$(PY) -m pip install --quiet torch==2.13.0 torchvision==0.28.0 -c constraints.txt $(TORCH_INDEX:%=--index-url %)
	$(PY) -m pip install --quiet --no-deps --no-build-isolation -e .
	$(PY) -m pip check
	@# A nightly build, which may be gone one day: without it a few tests are skipped, with a reason.
	@$(PY) $(LOCKED) locks/tflite-micro.txt || echo "without tflite-micro" >&2
	@$(PY) -c 'from qexport.compat.torchvision import advice; print(advice())' || true
	@touch $@

$(TOOLS)/.ready: locks/tools.txt
	$(call create_environment,$(TOOLS))
	$(TOOLS)/bin/python $(LOCKED) locks/tools.txt
	@touch $@

$(SITE)/.ready: locks/docs.txt
	$(call create_environment,$(SITE))
	$(SITE)/bin/python $(LOCKED) locks/docs.txt
	@touch $@

# What programs in JavaScript import; nothing of it runs when it is installed.
$(WEB)/.ready: locks/web/package.json locks/web/package-lock.json
	@mkdir -p $(WEB) && cp $^ $(WEB)
	npm ci --prefix $(WEB) --ignore-scripts --no-audit --no-fund --fetch-retries 1 --fetch-timeout 60000
	@touch $@

web: $(WEB)/.ready  ## install onnxruntime-web and sharp into build/web, for the programs that `qexport snippet --lang js` prints (needs npm)

# Hashes of every file of each version, so that any of the platforms in `tool.uv` finds its own. What is there is kept
# where it may be: for newer tools remove locks/tools.txt first.
COMPILE := $(TOOLS)/bin/uv pip compile --quiet --python-version 3.11 --generate-hashes --only-binary :all: \
  --no-annotate --custom-compile-command 'make lock'

lock: $(TOOLS)/.ready  ## write locks/ anew, from pyproject.toml and constraints.txt
	$(COMPILE) --universal pyproject.toml --all-extras --group build -c constraints.txt --no-emit-package torch \
	  --no-emit-package torchvision -o locks/qexport.txt
	$(COMPILE) --universal pyproject.toml --extra tflite --extra onnx --extra openvino --group build -c constraints.txt \
	  --no-emit-package torch --no-emit-package torchvision -o locks/runtime.txt
	$(COMPILE) --universal --group tools -o locks/tools.txt
	$(COMPILE) --universal --group docs -o locks/docs.txt
	$(COMPILE) --no-deps --group tflite-micro -o locks/tflite-micro.txt

# torch and torchvision are in the constraints alone. What the service does not know was not audited: that fails, too.
AUDIT := $(TOOLS)/bin/pip-audit --strict --progress-spinner off --no-deps --disable-pip -r

audit: $(TOOLS)/.ready  ## ask PyPI's service whether what is locked has known vulnerabilities
	@grep -hoE '^[A-Za-z0-9._-]+==[^ ]+' locks/qexport.txt > build/audited.txt && grep -E '^torch(vision)?==' constraints.txt >> build/audited.txt
	$(AUDIT) build/audited.txt
	$(AUDIT) locks/tools.txt
	$(AUDIT) locks/docs.txt

# The tool takes no version out of another file, where pyproject.toml has it.
sbom: setup $(TOOLS)/.ready  ## write dist/qexport.cdx.json: qexport and all that it was tested with, licences included (CycloneDX)
	@mkdir -p dist
	@sed "s/^dynamic = .*/version = \"$$($(PY) -c 'from qexport import __version__; print(__version__)')\"/" pyproject.toml > build/pyproject.toml
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(TOOLS)/bin/cyclonedx-py environment --pyproject build/pyproject.toml \
	  --output-reproducible -o dist/qexport.cdx.json $(PY)

# Of what is committed, and of nothing else that lies about.
dist: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct)
dist: $(TOOLS)/.ready  ## build dist/*.whl (qexport and qexport-decode) and dist/*.tar.gz of the last commit, the same bytes each time
	rm -rf build/source && mkdir -p build/source && git archive HEAD | tar -x -C build/source
	$(TOOLS)/bin/python -m build --no-isolation --outdir dist build/source
	$(TOOLS)/bin/python -m build --no-isolation --wheel --outdir dist build/source/qexport/decode

# Warnings are errors: a dead link, a page that is in no menu, an argument that a docstring names and a function lacks. With
# --quiet none would be counted.
docs: $(SITE)/.ready  ## build the documentation as a site in build/site
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict --config-file docs/site/mkdocs.yml
	@echo "wrote build/site/index.html"

reference: setup  ## write docs/reference.md from the options of every verb
	$(PY) docs/reference.py

run: setup  ## the main job on the embedded default: model, data set and report
	$(VENV)/bin/qexport demo

# Two processes, a file of tests at a time: most of what the tests run keeps one core busy.
test: setup  ## all tests
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: setup  ## measure the main job on the real models in ../shared, against the bounds; write results.json and the tables
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

faults: setup  ## end runs by signals and a full disk at each step of the walk and look at the next (fewer: TIMES=1 STEPS=onnx.lower)
	$(PY) benchmarks/faults.py $(TIMES:%=--times %) $(STEPS:%=--steps %) $(SIGNALS:%=--signals %)

bench-snippets: setup  ## run the programs of `qexport snippet` on files of every task, and compare what they find
	$(PY) benchmarks/snippets.py

bench-interop: setup  ## let everything that people use read files of ours, and compare what it finds (PYTHONS=… with other versions)
	@$(MAKE) --no-print-directory web || echo "without onnxruntime-web" >&2
	$(PY) benchmarks/interop.py $(PYTHONS:%=--python %)

bench-install: setup  ## add up what each extra of the package takes on the disk
	$(PY) benchmarks/install_size.py

bench-limits: setup  ## measure what memory grows by with images, calibrated on and scored, and with exports in one process
	$(PY) benchmarks/limits.py
	$(PY) benchmarks/large_evaluation.py

bench-sweep: setup  ## sweep three demo models here and on two workers of Ray, of which one is killed: equal tables
	$(PY) benchmarks/sweep.py

bench-training: setup  ## measure a step of quantisation-aware training on the real models: seconds and memory
	$(PY) benchmarks/training.py

bench-processes: setup  ## train in two processes of torchrun, of which one is killed or interrupted: as one process does
	$(PY) benchmarks/processes.py

bench-runs: setup  ## time whole runs: four formats with scales alone, a scored run, and the same with another gate
	$(PY) benchmarks/run_times.py

bench-profile: setup  ## show where the time of a run goes in each runtime, and how far its convolutions are from the peak
	$(PY) benchmarks/profile_runtimes.py $(KEEP:%=--keep %) $(MODELS)

tables: setup  ## write the tables of the documentation from benchmarks/results.json, without measuring
	$(PY) benchmarks/results.py

fuzz: setup  ## read hostile files of every kind, made by a seed: CASES=10000 SEED=0
	$(PY) tests/fuzz.py --cases $(or $(CASES),10000) --seed $(or $(SEED),0)

support: setup  ## export untrained models of every architecture and write the table of docs/architectures.md (of some: ROWS=…)
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
