# Each target sets itself up. `make demo` needs no GPU and no hub; `make repro` wants both.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# pyproject.toml names the Pythons that are allowed; this says so before anything is installed, in Python 2 too.
ALLOWED = import re, sys; \
  low, high = map(int, re.search(r'>=3\.(\d+),<3\.(\d+)', open('pyproject.toml').read()).groups()); \
  (3, low) <= sys.version_info[:2] < (3, high) or sys.exit( \
  'error: Python %d.%d; allowed: 3.%d to 3.%d; for example: make setup PYTHON=python3.%d' \
  % (sys.version_info[0], sys.version_info[1], low, high - 1, low))

.PHONY: help setup demo repro verify test lint demo-assets clean

help:            ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:[^#]*##/\t/'

setup: .venv/installed  ## .venv with requirements.txt and this project; again only when what it needs has changed

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c "$(ALLOWED)"
	$(PYTHON) -m venv .venv
	pip install --quiet --disable-pip-version-check -r requirements.txt
	pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: setup      ## the pipeline at CPU size: about a minute
	cd demo && dvc repro
	@echo; sed -n 1,12p demo/metrics/report.md

repro: setup     ## the published recipe: phi-2 on SNLI, on a GPU
	dvc repro

verify: setup    ## run the pipeline at CPU size anew, and say which results came out as committed
	cd demo && python -m tools.verify

test: setup      ## all tests that need no GPU
	python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

lint: setup      ## style and common mistakes
	ruff check .
	ruff format --check .

demo-assets: setup  ## make demo/assets anew: the small world's sentences and the nano model
	python demo/make/everyday_nli.py
	python demo/make/nano_phi.py
	python demo/make/examples.py

clean:           ## remove what the stages wrote, but not what Git or DVC's cache holds
	rm -rf outs demo/outs
