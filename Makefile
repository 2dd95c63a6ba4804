# One word per job; each makes the environment it needs. `make VENV=.venv312 PYTHON=python3.12 test`
# runs the same on another interpreter, beside the first.
VENV ?= .venv
BIN := $(VENV)/bin

# Two processes with two spinning threads each cost up to 20x on two cores.
test test-slow test-oldest lint types docs bench mutants: export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help env demo test test-slow test-oldest lint types docs bench mutants clean

help:
	@echo 'make demo       fit SmolLM2-135M to a sentiment posterior and show before/after'
	@echo 'make test       everything that CI runs: lint, types, contracts, tests, tutorials, docs'
	@echo 'make test-slow  the slow tests, the wheel checks and test-oldest, once per issue'
	@echo 'make test-oldest  the tests at the lower bounds: the core alone, and with [jax]'
	@echo 'make lint | types | docs | bench | mutants | clean'

env:
	@sh scripts/env.sh $(VENV)

# glibc returns big buffers to the system at once and faults them in again: a tenth of a step.
demo: export MALLOC_MMAP_THRESHOLD_ = 1073741824
demo: export MALLOC_TRIM_THRESHOLD_ = 8589934592
demo: env
	$(BIN)/infer-align demo $(ARGS)

# One recipe, so that the time to make the environment enters the table.
test:
	@start=$$(date +%s) && sh scripts/env.sh $(VENV) && $(BIN)/python scripts/ci.py --started $$start

test-slow:
	@start=$$(date +%s) && sh scripts/env.sh $(VENV) && $(BIN)/python scripts/ci.py --slow --started $$start

test-oldest: env
	@$(BIN)/python scripts/ci.py --only oldest

lint: env
	@$(BIN)/python scripts/ci.py --only lint

types: env
	@$(BIN)/python scripts/ci.py --only types

docs: env
	@$(BIN)/python scripts/ci.py --only docs

bench: env
	@$(BIN)/python scripts/ci.py --only bench

mutants: env
	@$(BIN)/python scripts/mutants.py $(ARGS)

clean:
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv*' -type d -prune -exec rm -rf {} +
