# Two commands are enough on a fresh machine: `make quickstart` and `make test`. Everything else is listed by `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXPERIMENT ?= quickstart
PRESET ?= quickstart
# more overrides of your own, each quoted for the shell: ARGS='blend.num_tokens=100000'
ARGS ?=
# of `make bench`: --full for full inputs, --only train_step for one
BENCH_ARGS ?=
# test processes at a time; a file's tests stay in one, because they share what its fixtures trained
export TEST_PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest -q --numprocesses=$(TEST_PROCESSES) --dist=loadfile
CPT := $(BIN)/megatron-cpt

samples_quickstart := smollm2-135m china_law war_and_peace us_history hellaswag_100 mmlu_law china_law_cloze
samples_medical := smollm2-135m surgery war_and_peace us_history
samples_tiny := tiny

.PHONY: help setup samples quickstart test test-fast test-long test-other-core check bench docs figures pretrain-tokenizer pretrain-run pretrain-eval clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

$(VENV)/.installed: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "Python 3.11 to 3.13 is needed; set PYTHON=python3.12, say."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[samples,data,dev]'
	@touch $@

setup: $(VENV)/.installed ## make the virtual environment .venv

samples: $(VENV)/.installed ## fetch the sample model and texts of PRESET
	@$(BIN)/python tools/fetch_samples.py $(samples_$(PRESET))

quickstart: samples ## set up and run the whole line: PRESET=quickstart (default), medical or tiny
	@$(CPT) run experiment=$(PRESET) $(ARGS)

pretrain-tokenizer: $(VENV)/.installed ## corpus and vocabulary of EXPERIMENT, with the tokenizer report
	@$(CPT) run --until vocab experiment=$(EXPERIMENT) $(ARGS)

pretrain-run: $(VENV)/.installed ## index, init, plan, baseline and training of EXPERIMENT, with cost and energy records
	@$(CPT) run --until train experiment=$(EXPERIMENT) $(ARGS)

pretrain-eval: $(VENV)/.installed ## candidate against baseline, promotion or rollback, export, report, and a check of the records
	@code=0; $(CPT) run --from eval experiment=$(EXPERIMENT) $(ARGS) || code=$$?; \
	  if [[ $$code == 0 || $$code == 5 ]]; then $(CPT) audit experiment=$(EXPERIMENT) $(ARGS); fi; exit $$code

test: $(VENV)/.installed ## set up and run the tests that need no GPU, but for those of test-long
	@$(PYTEST)

test-fast: $(VENV)/.installed ## the tests that take seconds
	@$(PYTEST) -m 'not slow and not real_model and not long'

test-long: $(VENV)/.installed ## the tests that take minutes and prove a promise at full length
	@$(PYTEST) -m long

test-other-core: $(VENV)/.installed ## the Megatron tests on megatron-core 0.19.2, in a second environment over the first
	@tools/other_core.sh $(VENV) $(VENV)-core-0.19

check: $(VENV)/.installed ## lint, types, shell scripts, layers
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports
	@$(BIN)/shellcheck launch/*.sh tools/*.sh slurm/*.sh slurm/*.sbatch slurm/env/*.sh .ci/run

bench: $(VENV)/.installed ## every benchmark in its short form, under 20 minutes on 2 cores; writes benchmarks/RESULTS.md
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@$(BIN)/python benchmarks/run_all.py $(BENCH_ARGS)

docs: $(VENV)/.installed ## build docs/_build/html/index.html from docs/, the schema and the parsers; a warning is an error
	@$(BIN)/python -m sphinx -q -b html -W --keep-going docs docs/_build/html

figures: $(VENV)/.installed ## write the tables of the documents from their records (docs/figures.py --how: what measures those anew)
	@$(BIN)/python docs/figures.py

clean: ## remove the environments and caches; runs/ and data/ stay
	rm -rf $(VENV) $(VENV)-core-0.19 .mypy_cache .ruff_cache .pytest_cache *.egg-info build docs/_build docs/reference/generated
