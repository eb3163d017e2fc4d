# The commands of this repository; `make` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup demo up test check migrate simulate chaos mutants bench compose-test real-base clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
ZHUB_CHAOS_MINUTES ?= 30
ZHUB_FUZZ_REQUESTS ?= 100000
ZHUB_SIMULATION_SEEDS ?= 1000
BENCH_ARGS ?=
BASE ?= zhub-tiny

help: ## List the commands.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "== Installing zhub and all it needs into $(VENV) (about 2 GB, a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

setup: $(VENV)/.installed ## Create .venv with everything in it.

demo: setup ## The whole path on this machine: train an expert for each of eight tasks and ask them. BASE=smollm2: three, on a real language model, in half an hour.
	$(BIN)/zhub demo --base $(BASE)

up: setup ## Run the embedded stack until Ctrl-C.
	$(BIN)/zhub up

# Where it is set, as in images of Docker, each process that a test starts would compile zhub again.
test: export PYTHONDONTWRITEBYTECODE =
# In the order of the folders: what starts whole clusters are the longest groups of tests, and come first. These wait for
# half of their time, so that there is one process more than cores: with two more,
# nodes of a cluster were not up within a minute.
test: setup ## Run the tests, one more at a time than there are cores, but at most four.
	$(BIN)/pytest --numprocesses $$($(BIN)/python -c 'import os; print(os.cpu_count() + 1)') --maxprocesses 4 \
		--dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: setup ## Lint, formatting, types, and the rules of who imports whom.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

migrate: setup ## Bring the database at ZHUB_OWNER_DATABASE_URL to this release's revision.
	$(BIN)/zhub db upgrade

simulate: setup ## Play ZHUB_SIMULATION_SEEDS (1000) histories of the queue in virtual time, each with its own harm.
	ZHUB_SIMULATION_SEEDS=$(ZHUB_SIMULATION_SEEDS) $(BIN)/pytest -s tests/simulation $(PYTEST_ARGS)

chaos: setup ## Harm every process and server for ZHUB_CHAOS_MINUTES (30), kill each part while a real job runs, send the API ZHUB_FUZZ_REQUESTS (100000).
	ZHUB_CHAOS_MINUTES=$(ZHUB_CHAOS_MINUTES) ZHUB_FUZZ_REQUESTS=$(ZHUB_FUZZ_REQUESTS) \
		$(BIN)/pytest -s tests/chaos tests/e2e/test_kill.py tests/integration/api/test_fuzzed_requests.py $(PYTEST_ARGS)

mutants: setup ## Take guards of the job protocol and of experts away one by one, and see that a test notices each.
	$(BIN)/python tools/mutants.py

ifeq ($(origin NAME),command line)
bench: benchmarks/$(NAME).py $(VENV)/.bench-installed
	$(BIN)/python benchmarks/$(NAME).py $(BENCH_ARGS)
else
bench: ## List the benchmarks; with NAME=sandbox, run that one and write its results.
	@for script in $$(grep -l '^if __name__' benchmarks/*.py); do \
		printf '  make bench NAME=%-22s %s\n' "$$(basename $$script .py)" "$$(sed -n '1s/^"""//p' $$script)"; \
	done
endif

# The peers that some of them compare with.
$(VENV)/.bench-installed: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@touch $@

real-base: setup ## Train on a real language model: fetches SmolLM2 (93 MB) once, then takes about twenty minutes.
	$(BIN)/pytest -s tests/e2e/test_real_base.py --run-real-base $(PYTEST_ARGS)

compose-test: setup ## Build the images, bring docker compose up, run the path through it.
	$(BIN)/pytest tests/e2e/test_compose.py --run-docker $(PYTEST_ARGS)

clean: ## Remove what the commands above made.
	rm -rf $(VENV) .zhub-demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
