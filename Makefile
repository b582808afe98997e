# Needs Python 3.11 to 3.13 with venv and headers, and g++; everything else goes into .venv.

PYTHON ?= python3
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1

BIN := .venv/bin
STAMP := .venv/.setup-done

.PHONY: setup quickstart test lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "setup: $(PYTHON) is not Python 3.11 to 3.13; name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "setup: $(PYTHON) has no venv module; install it (Debian: apt-get install python3-venv python3-dev)" >&2; exit 1; }
	@command -v g++ >/dev/null || { \
	  echo "setup: g++ is missing, GPAW needs it; install it (Debian: apt-get install g++)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	printf 'libraries=[]\nnoblas=True\nnolibxc=True\nmpi=False\n' > .venv/gpaw-siteconfig.py
	CC=g++ GPAW_CONFIG=$(CURDIR)/.venv/gpaw-siteconfig.py $(BIN)/python -m pip install --quiet gpaw==26.7.0
	touch $@

# A campaign that has finished, or was interrupted, goes on from its run folder; a finished one prints its report.
quickstart: setup
	if [ -e runs/quickstart ]; then $(BIN)/discovery resume runs/quickstart; else $(BIN)/discovery launch quickstart; fi

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The longest test begins first, beside the others.
test: lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find agents benchmarks configs discovery generators oracles tests -name __pycache__ -prune -exec rm -rf {} +
