# Each target first installs what it needs. `make demo` needs no GPU and no model hub; `make repro` needs both.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# Checks the Python version against pyproject.toml before pip installs anything. It also runs in Python 2.
ALLOWED = import re, sys; \
  low, high = map(int, re.search(r'>=3\.(\d+),<3\.(\d+)', open('pyproject.toml').read()).groups()); \
  (3, low) <= sys.version_info[:2] < (3, high) or sys.exit( \
  'error: Python %d.%d; allowed: 3.%d to 3.%d; for example: make setup PYTHON=python3.%d' \
  % (sys.version_info[0], sys.version_info[1], low, high - 1, low))

.PHONY: help setup demo repro verify test lint demo-assets clean

help:            ## print this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:[^#]*##/\t/'

setup: .venv/installed  ## create .venv with the pinned packages; again only if requirements.txt or pyproject.toml change

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c "$(ALLOWED)"
	$(PYTHON) -m venv .venv
	pip install --quiet --disable-pip-version-check 'pip>=26'  # 23.2 needs twice the time for the next line
	pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	python -m compileall -qq -j 0 .venv/lib || true  # on all cores, pip compiles on one; some templates are no Python
	PYTHONWARNINGS=ignore pip install --quiet --disable-pip-version-check --no-deps --editable .  # setuptools warns of a data folder
	touch $@

demo: setup      ## run the pipeline at CPU size: about a minute
	cd demo && dvc repro
	@echo; sed -n 1,12p demo/metrics/report.md

repro: setup     ## run the published recipe: phi-2 on SNLI, on a GPU
	dvc repro

verify: setup    ## run the demo again, and list the results that equal the committed ones
	cd demo && python -m tools.verify

test: setup      ## run all tests that need no GPU
	python -m pytest -n 3 --dist loadscope --no-loadscope-reorder

lint: setup      ## style, common mistakes and types
	ruff check .
	ruff format --check .
	mypy

demo-assets: setup  ## make the demo's data sets and its nano model again
	python demo/make/everyday_nli.py
	python demo/make/nano_phi.py
	python demo/make/examples.py

clean:           ## remove the stages' outs, but nothing in Git or DVC's cache
	rm -rf outs demo/outs
