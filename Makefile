# `make demo` trains, evaluates and reports; `make test` runs the suite, `make check` its fast part and the linters.
# `make docs` builds the site. All of them make .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
DEMO := runs/demo
CONFIG := configs/simclr.py:digits
export TF_CPP_MIN_LOG_LEVEL ?= 3
# On a Linux CPU: freed memory stays with the process and comes in large pages (docs/cpu.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776

.PHONY: demo check test lint docs mutations clean

.venv/installed: setup.py requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  assert (3, 11) <= v < (3, 14), f"Python 3.11 to 3.13 is needed, {sys.executable} is {sys.version.split()[0]}: \
	make PYTHON=python3.12"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[test,docs]'
	@touch $@

demo: .venv/installed
	$(BIN)/ssljax sweep --config $(CONFIG) --config.seed=0,1,2 --workdir $(DEMO) \
	  --protocols knn,linear,label_fraction --baselines raw_pixels,random_init,supervised
	@$(BIN)/ssljax report $(DEMO)

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadscope --no-loadscope-reorder

check: lint
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadscope --no-loadscope-reorder -m "not slow"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	JAX_PLATFORMS=cpu $(BIN)/mkdocs build --strict --quiet

mutations: .venv/installed
	$(BIN)/python tests/mutations.py

clean:
	rm -rf .venv runs
