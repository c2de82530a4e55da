# `make demo` and `make test` are all that a fresh machine needs.
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
COMPILED := $(VENV)/.compiled
TORCH := $(shell grep -m1 '^torch==' constraints.txt)
PROOFS := benchmarks/unified.py benchmarks/vae_ablations.py benchmarks/layer_axis.py benchmarks/nano_design.py # these train for hours
BENCHMARKS := $(filter-out $(PROOFS), $(sort $(wildcard benchmarks/*.py)))

.PHONY: setup demo test check-slow bench proofs lint docs gallery plugins

setup: $(COMPILED)

# torch comes first and alone: exactly the pinned build, before anything else can ask for another one.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e '.[train,eval,curate,serve,studio,docs,dev]'
	touch $@

# Once, so that no user waits for it.
$(COMPILED): $(INSTALLED)
	$(BIN)/python -c 'from omnialpha import kernels; kernels.load(); kernels.load("omnialpha.patches")'
	touch $@

demo: setup
	$(BIN)/omnialpha demo -o demo

# One process a core, each with one thread of torch, so that sums are the same everywhere. Neighbours stay in one process,
# and share their fixtures, until another process has nothing left to do.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n logical --maxprocesses 4 --dist worksteal

check-slow: setup
	$(BIN)/pytest -q -m slow

bench: setup
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python "$$script"; done

proofs: setup
	@set -e; for script in $(PROOFS); do echo "== $$script"; $(BIN)/python "$$script"; done

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict # into site/

# docs/gallery.md and its pictures, by the commands that it shows; minutes.
gallery: setup
	$(BIN)/python -m omnialpha.demo.gallery docs

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src

# One zip a program, with what its user copies or imports at the top.
plugins:
	$(PYTHON) plugins/pack.py dist
