# make install    an environment in .venv, which the other targets make first
# make demo       models that find notes hidden in real text; with DATA the whole job on your documents
# make check      lint, types and unit tests, for the daily work (minutes)
# make test       lint, types and all tests, with real ranks, kills, hosts and SLURM
# make test-versions  the tests that would notice, with the oldest and newest versions of the libraries
# make lint       ruff and mypy alone
# make bench      what soft_topk costs here, written to benchmarks/results/; BENCH=--help for more
# make bench-gpu  on a CUDA machine: tests/gpu, then the same tables there
# make clean      remove what make made
#
# Variables: PYTHON (3.11 or newer), DATA (your own documents for `make demo DATA=papers.jsonl`),
#            TORCH (what to install first; where no GPU is visible a CPU build serves best), PYTEST (more pytest options).

SHELL := /bin/bash
PYTHON ?= python3
TORCH ?= torch==2.13.0
DATA ?=
PYTEST ?=
BENCH ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CLUSTER_LOG := $(VENV)/cluster-tests.log
SHARED_OUT := $(BIN)/pytest -n 3 --dist worksteal
BUILD := $(BIN)/python -m transpooler.model.ops  # once, before many processes want it at the same time
OPERATORS := $(BIN)/python -m transpooler.trainer.engine.compiled_ops cpu_adam fused_adam

# DeepSpeed compiles a small CPU communication op once; keep it with the environment it was compiled for.
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/$(VENV)/torch_extensions
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo check test test-versions lint bench bench-gpu install clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is older than Python 3.11; try make PYTHON=python3.12" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch goes first, by name: DeepSpeed's build looks for it, and a CPU build found by pip is kept.
	$(BIN)/pip install --quiet -c constraints.txt "$(TORCH)"
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/transpooler demo --output build/demo $(if $(DATA),--data "$(DATA)")

check: lint
	@$(BUILD)
	$(SHARED_OUT) tests/unit $(PYTEST)

test: $(STAMP)
	@# What the tests need compiled is compiled beside the linters, which take one core.
	@{ $(BUILD); $(OPERATORS); } & build=$$!; $(MAKE) --no-print-directory lint; failed=$$?; wait $$build; exit $$failed
	@# Tests of clusters mostly wait: they run beside the others and go first where both want a core.
	@# Of the others, the long ones come first: one half begins with them, the other takes over what is left of them.
	@rm -f $(CLUSTER_LOG)
	@$(BIN)/pytest tests/cluster $(PYTEST) >$(CLUSTER_LOG) 2>&1 & cluster=$$!; trap 'kill $$cluster' INT TERM; failed=0; \
	nice -n 5 $(SHARED_OUT) tests/distributed tests/integration tests/numerics tests/gpu tests/unit $(PYTEST) || failed=1; \
	echo "tests/cluster, which has been running beside these (from here on: $(CLUSTER_LOG)):"; \
	wait $$cluster || failed=1; cat $(CLUSTER_LOG); exit $$failed

test-versions: $(STAMP)
	@$(BUILD)
	$(BIN)/python -m tests.versions

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m transpooler.benchmarks.soft_topk speed $(BENCH)
	$(BIN)/python -m transpooler.benchmarks.soft_topk figures $(BENCH)

bench-gpu: $(STAMP)
	$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make bench-gpu: torch sees no CUDA device")'
	$(BIN)/pytest tests/gpu $(PYTEST)
	$(BIN)/python -m transpooler.benchmarks.soft_topk speed --device cuda $(BENCH)
	$(BIN)/python -m transpooler.benchmarks.soft_topk figures --device cuda $(BENCH)

clean:
	rm -rf build $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
