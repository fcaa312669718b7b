# `make run` fits a real posterior, `make test` runs the tests; both set up .venv by themselves.
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
STAMP_TEST := $(VENV)/.installed-test
STAMP_PEERS := $(VENV)/.installed-peers
PYTHON ?= python3
UV     := $(shell command -v uv 2>/dev/null)
# uv does not read pip's configuration: hand over the folders of local wheels that pip knows
LINKS  := $(foreach l,$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null),--find-links $(l))
JOBS   ?= 2
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

ifeq ($(UV),)
INSTALL = $(PY) -m pip install --quiet
MAKE_VENV = $(PYTHON) -m venv $(VENV)
else
INSTALL = $(UV) pip install --quiet --python $(PY) $(LINKS)
MAKE_VENV = $(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
endif

.PHONY: run test slow lint evidence bench clean

run: $(STAMP)
	$(VENV)/bin/probcalc run eight_schools $(ARGS)

test: $(STAMP_TEST)
	$(PY) -m pytest -n $(JOBS) -m "not slow and not long and not gpu" --jaxtyping-packages=probcalc,beartype.beartype $(ARGS)

slow: $(STAMP_TEST)
	$(PY) -m pytest -n $(JOBS) -m "slow and not gpu" $(ARGS)

lint: $(STAMP_TEST)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# The long measurements: tables under benchmarks/results/, which are committed.
evidence: $(STAMP_PEERS)
	$(PY) -m benchmarks all
	$(PY) -m pytest -n $(JOBS) -m long -s

bench: $(STAMP_PEERS)
	$(PY) -m benchmarks $(NAME)

$(PY):
	$(MAKE_VENV)

$(STAMP): pyproject.toml | $(PY)
	$(INSTALL) -e .
	touch $@

$(STAMP_TEST): pyproject.toml | $(PY)
	$(INSTALL) -e ".[test]"
	touch $@ $(STAMP)

$(STAMP_PEERS): pyproject.toml | $(PY)
	$(INSTALL) -e ".[test,peers]"
	touch $@ $(STAMP) $(STAMP_TEST)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
