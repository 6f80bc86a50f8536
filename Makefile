# `make run` and `make test` need Python 3.11 and, the first time, a package index; nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
CONFIG ?= config/micro.yaml
CORES  ?= all
OUT    ?= check_gpu.json

bin   := $(VENV)/bin
torch := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
uv    := $(shell sed -n 's/^ *"\(uv==[^"]*\)".*/\1/p' pyproject.toml)
pip   := $(bin)/pip install --quiet --disable-pip-version-check
# A fifth of pip's time. It knows nothing of pip's own settings (mirrors, constraints): where it fails, pip does it.
install = $(bin)/uv pip install --quiet --compile-bytecode --python $(bin)/python -e $(1) || $(pip) -e $(1)
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: run test lint envs check-gpu format install clean

run: $(VENV)/.runs
	$(bin)/snakemake --cores $(CORES) --configfile $(CONFIG)

# The end-to-end test uses all cores by itself, so it runs after the others and alone.
test: install
	$(bin)/pytest -n 2 --ignore tests/test_smoke.py
	$(bin)/pytest tests/test_smoke.py

lint: install
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/snakefmt --check Snakefile workflow
	$(bin)/snakemake --lint

# That the conda environments' pip parts resolve, by metadata alone.
envs: install
	$(bin)/python workflow/envs/resolve.py

# What needs a GPU: docs/benchmarks.md. Needs a Python with torch; installs nothing but what is missing, from WHEELS.
check-gpu:
	$(or $(wildcard $(bin)/python),$(PYTHON)) -m benchmarks.check_gpu --out $(OUT) $(if $(WHEELS),--wheels $(WHEELS)) $(CHECK)

format: install
	$(bin)/ruff format .
	$(bin)/ruff check --fix .
	$(bin)/snakefmt Snakefile workflow

install: $(VENV)/.installed

# What running needs; torch first and alone: see pyproject.toml.
$(VENV)/.runs: pyproject.toml
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	$(pip) $(torch) $(uv)
	$(call install,.)
	touch $@

# ... and the rest.
$(VENV)/.installed: $(VENV)/.runs
	$(call install,'.[dev]')
	touch $@

clean:
	rm -rf results/micro results/smoke .snakemake
