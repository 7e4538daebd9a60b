# Each target installs what it needs when it is missing; a second call finds everything in place.
#   make demo [SECONDS=60] [KAFKA=1] [ARGS=...]   a minute of learning from a live stream, with a report
#   make test [ARGS=...] [SEED=n] [WORKERS=2]     the whole test suite
#   make chaos [KILLS=500] [SEED=n]               everything killed and replaced at random for half an hour, and every event counted
#   make fuzz [MESSAGES=500000] [SEED=n]          every RPC is sent broken and nonsensical messages, so many each
#   make sanitize                                 the native core's tests under address, undefined and thread sanitizers
#   make lint                                     style, types, generated code
#   make bench [ARGS="table remote"]              every figure beside its reference, or those of some workloads
#   make bench-peers                              other libraries for it, each in an environment of its own (7 GB)
#   make build | protos | stubs | clean           native module | generated code | its type stubs | remove what was built

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test chaos fuzz sanitize lint bench bench-peers build protos stubs clean

VENV := .venv
PY := $(VENV)/bin/python
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install -q -c constraints.txt
STAMP := $(VENV)/.stamps
PEERS := build/bench/peers
NATIVE_SOURCES := CMakeLists.txt $(shell find embedstore/native -type f 2>/dev/null)
SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
SECONDS ?= 60
KILLS ?= 500
MESSAGES ?= 500000
KAFKA ?=
WORKERS ?= 2
ARGS ?=

# --- installation ---------------------------------------------------------------------------------------------------

$(STAMP)/venv: scripts/setup
	scripts/setup venv $(VENV)
	mkdir -p $(STAMP)
	touch $@

# Tools of the native build come first: it runs without isolation, so that their versions are pinned too.
$(STAMP)/tools: $(STAMP)/venv constraints.txt
	$(PIP) --group build
	touch $@

# Also after every change of the C++ sources; the dependencies are there then and cost nothing.
$(STAMP)/native: $(STAMP)/tools $(NATIVE_SOURCES) pyproject.toml
	@echo "building embedstore and installing its dependencies (the first time brings PyTorch: some minutes)"
	$(PIP) --no-build-isolation --editable .
	touch $@

$(STAMP)/dev: $(STAMP)/native
	$(PIP) --group dev
	touch $@

$(STAMP)/java: scripts/setup | $(STAMP)/venv
	scripts/setup java
	touch $@

build: $(STAMP)/native

# --- commands -------------------------------------------------------------------------------------------------------

demo: $(STAMP)/native $(if $(KAFKA),$(STAMP)/java)
	$(VENV)/bin/embedtrain demo --seconds $(SECONDS) $(if $(KAFKA),--kafka) $(ARGS)

test: $(STAMP)/dev $(STAMP)/java
	$(PY) -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder --hypothesis-seed=$(SEED) --session-timeout=600 $(ARGS)

chaos: $(STAMP)/dev $(STAMP)/java
	PYTHONPATH=tests $(PY) tests/faults/chaos.py --kills $(KILLS) --seed $(SEED) $(ARGS)

fuzz: $(STAMP)/dev
	PYTHONPATH=tests $(PY) tests/fuzz/fuzz.py --messages $(MESSAGES) --seed $(SEED) $(ARGS)

sanitize: $(STAMP)/tools
	scripts/native-tests address,undefined
	scripts/native-tests thread threads

lint: $(STAMP)/dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/buf lint protos
	scripts/protos --check
	scripts/stubs --check
	find embedstore/native -name '*.h' -o -name '*.cc' | xargs $(VENV)/bin/clang-format --dry-run -Werror
	$(PY) scripts/check_tree.py

bench: $(STAMP)/dev $(STAMP)/java
	$(PY) -m benchmarks $(or $(ARGS),all)

bench-peers: $(PEERS)/.fbgemm $(PEERS)/.tfra

# Every version is listed, indirect ones too, so nothing is left to be chosen.
$(PEERS)/.%: benchmarks/peers/%.txt | $(STAMP)/venv
	rm -rf $(PEERS)/$*
	scripts/setup venv $(PEERS)/$*
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(PEERS)/$*/bin/python -m pip install -q --no-deps -r $<
	touch $@

protos: $(STAMP)/dev
	scripts/protos

stubs: $(STAMP)/dev
	scripts/stubs

clean:
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
