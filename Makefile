# Each target sets itself up. `make demo` needs no GPU and no hub; `make repro` wants both.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup demo repro verify test lint embedded-assets clean

help:            ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:[^#]*##/\t/'

setup: .venv/installed  ## .venv with requirements.txt and this project; again only when what it needs has changed

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	pip install --quiet --disable-pip-version-check -r requirements.txt
	pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: setup      ## the pipeline at CPU size: about a minute
	cd embedded && dvc repro
	@echo; sed -n 1,12p embedded/metrics/report.md

repro: setup     ## the published recipe: phi-2 on SNLI, on a GPU
	dvc repro

verify: setup    ## run the pipeline at CPU size anew, and say which results came out as committed
	cd embedded && python -m tools.verify

test: setup      ## all tests that need no GPU
	python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

lint: setup      ## style and common mistakes
	ruff check .
	ruff format --check .

embedded-assets: setup  ## make embedded/assets anew: the small world's sentences and the nano model
	python embedded/make/everyday_nli.py
	python embedded/make/nano_phi.py
	python embedded/make/examples.py

clean:           ## remove what the stages wrote, but not what Git or DVC's cache holds
	rm -rf outs embedded/outs
