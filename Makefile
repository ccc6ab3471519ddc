# Every way in. `make help` lists the targets.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python

.PHONY: setup
setup: $(VENV)/.ready  ## build .venv from environment.yml (done by itself before any other target)

$(VENV)/.ready: environment.yml pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, {v.major}.{v.minor} was found: make PYTHON=python3.12 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "python3 has no venv module: on Debian or Ubuntu, apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	sed -n 's/^ *- \([A-Za-z0-9_.-]*==.*\)$$/\1/p' environment.yml > $(VENV)/requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r $(VENV)/requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

DATASET ?= mnist
PROFILE ?= quick
JOBS    ?= $(shell nproc 2>/dev/null || echo 2)
# to trainings only what was asked for: what suits a GPU is not the number of cores
ASKED = $(if $(filter environment command,$(firstword $(origin JOBS))),--jobs $(JOBS)) $(if $(SCHEDULER),--scheduler $(SCHEDULER))
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

.PHONY: study lite paper
study: PROFILE = quick
lite: PROFILE = lite
paper: PROFILE = paper
study: setup  ## train and render the quick profile into results/quick (minutes; digits, no download)
lite: setup  ## the lite profile: the AL2 test on 10,000 images, and ConvNets of size s (hours on two cores; DATA_DIR has the data)
paper: setup  ## the papers' own settings (best on a GPU; resumable; PRECISION=bfloat16 for faster steps where the hardware has it)
study lite paper:
	$(PY) -m lib.study.campaign --profile $(PROFILE) $(ASKED)

.PHONY: experiment
experiment: setup  ## train one experiment of a profile and render its notebooks: make experiment NAME=schedules PROFILE=lite
	$(PY) -m lib.study.campaign --profile $(PROFILE) --experiment "$(NAME)" $(ASKED)

.PHONY: campaign
campaign: setup  ## train a profile in slices of so many seconds: make campaign PROFILE=paper BUDGET=540 (no BUDGET: to the end)
	$(PY) -m lib.study.campaign --profile $(PROFILE) $(ASKED) $(if $(BUDGET),--budget $(BUDGET))

.PHONY: plan
plan: setup  ## what a profile states, how much of it is done and how long the rest takes: make plan PROFILE=lite
	$(PY) -m lib.study.campaign --profile $(PROFILE) --list $(ASKED)

.PHONY: bench
bench: setup  ## time the trainer beside plain loops and the floor, into results/bench (a few quiet minutes; DEVICE=cuda: the GPU, at most 10; OPTIONS="--tiny": to try it)
	$(PY) -m lib.bench $(if $(DEVICE),--device $(DEVICE)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(OUT),--out $(OUT)) $(OPTIONS)

.PHONY: precision
precision: setup  ## train six networks in float32 and in bfloat16, into results/bench (15 minutes on two cores; DATA_DIR has the data; OPTIONS=--whole: one at the paper's settings, 2 to 3 hours)
	$(PY) -m lib.bench.precision --jobs $(JOBS) $(if $(OUT),--out $(OUT)) $(OPTIONS)

.PHONY: report evidence
report: setup  ## bring results/report (and the README's table) up to date with the stored runs of lite and paper; trains nothing
	$(PY) -m lib.study.report --jobs $(JOBS)
evidence: setup  ## the same, and the outputs of the notebooks' cells that rest on stored runs: after runs were committed
	$(PY) -m lib.study.report --jobs $(JOBS) --in-place

.PHONY: check
check: setup  ## OK or FAIL, and what to do: Python, packages, processor or GPU, data sets, disk, git
	$(PY) -m lib.study.check

.PHONY: verify
verify: setup  ## train the first epochs of stored runs again and compare their curves (6 minutes on a quiet core; DATA_DIR has the data; OPTIONS="--only LeNet")
	$(PY) -m lib.study.verify $(OPTIONS)

.PHONY: data
data: setup  ## download a data set into DATA_DIR: make data DATASET=mnist
	$(PY) -m lib.data $(DATASET)

# test processes, and the kernels of notebooks, beside each other: each of one thread
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS)

.PHONY: test test-lib test-notebooks test-slow
test: test-lib test-notebooks  ## the fast half of pytest, and nbval (6 to 13 minutes on two cores)
test-lib: setup  ## pytest without the tests marked slow (2 minutes)
	$(PYTEST) --dist worksteal -m "not slow" tests
test-notebooks: setup  ## nbval: the quick runs are trained, then every notebook is compared with its committed outputs
	folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	RESULTS_DIR=$$folder $(PY) -m lib.study.campaign --profile quick --train-only --jobs $(JOBS); \
	PROGRESS=0 RESULTS_DIR=$$folder $(PYTEST) --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=900 -p no:cacheprovider $(NOTEBOOKS)
test-slow: setup  ## the rest of pytest (23 minutes): what trains for longer, starts processes, or calls every command of this file
	$(PY) -m pytest -m slow tests

.PHONY: notebooks
notebooks: setup  ## execute the committed notebooks in place with their quick settings, and strip the noise
	mkdir -p .cache
	for notebook in $(NOTEBOOKS); do \
	  copy=.cache/$$(basename $$notebook); \
	  OMP_NUM_THREADS=1 PROGRESS=0 $(PY) -m papermill --no-progress-bar --log-level WARNING -k python3 $$notebook $$copy; \
	  $(VENV)/bin/nbstripout --keep-output --keep-count --keep-id --extra-keys \
	    "metadata.papermill metadata.language_info.version cell.metadata.papermill cell.metadata.execution" $$copy; \
	  mv $$copy $$notebook; \
	done

# JupyterLab refuses to run as root, as one is in a container, unless told so
AS_ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)
LAB ?=

.PHONY: lab
lab: setup  ## open the notebooks in JupyterLab: make lab LAB="--no-browser --port 8889"
	PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/jupyter lab $(AS_ROOT) $(LAB) notebooks

.PHONY: book
book: setup  ## build the book into build/book (README, notebooks as committed, report, glossary, API; a minute): open build/book/index.html
	rm -rf build/book build/doctrees
	PYTHONWARNINGS=ignore $(PY) -m sphinx -q -W --keep-going -b html -c notebooks/book -d build/doctrees . build/book

.PHONY: lint format
lint: setup  ## ruff over code and notebooks
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
format: setup  ## let ruff mend what it can
	$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

.PHONY: clean
clean:  ## remove what can be made again: quick results, caches, .venv (never data/, results/own/ or committed results)
	rm -rf results/quick results/.locks build .cache $(VENV) .pytest_cache .ruff_cache *.egg-info

.PHONY: help
help:  ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | awk -F '\t' '{ printf "  %-15s %s\n", $$1, $$2 }'
