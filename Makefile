# One virtual environment for everything, made from the pinned requirements at first need.
#
#   PYTHON    the interpreter that makes it (default: the first of 3.11, 3.12, 3.13 that is there)
#   FAMILY    openmmlab (default), or onedl: the maintained fork of MMSegmentation
#   VENV      where it goes (default: .venv, with FAMILY=onedl .venv-onedl)
#   PIP_ARGS  options for every pip install, for instance an index with CPU-only PyTorch
#   WORKERS   processes that share the tests, each on one thread (default: as many as cores, at most 4)
#   PYTEST_ARGS, DEMO_ARGS   passed on

FAMILY ?= openmmlab
ifeq ($(FAMILY),openmmlab)
VENV ?= .venv
REQUIREMENTS := -r requirements.txt -r requirements/dev.txt
WITHOUT_DEPS := -r requirements/no-deps.txt
else ifeq ($(FAMILY),onedl)
VENV ?= .venv-onedl
REQUIREMENTS := -r requirements/dev.txt
WITHOUT_DEPS := -r requirements/no-deps.txt -r requirements/onedl.txt
else
$(error FAMILY must be openmmlab or onedl, not $(FAMILY))
endif
PIP_ARGS ?=
PYTEST_ARGS ?=
DEMO_ARGS ?=
WORKERS ?= auto --maxprocesses 4
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	2>/dev/null && { echo $$p; break; }; done)

BIN := $(VENV)/bin
STAMP := $(VENV)/.requirements-installed
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)
HEADLESS := opencv-python-headless==5.0.0.93
# A PYTHONPATH from outside could put a checkout before the installed package.
CLEAN_ENV := env -u PYTHONPATH -u PYTHONHOME
# What the tests are to find: the installed package, and this family.
UNDER_TEST := MMSEG_CMDL_TEST_INSTALLED=1 MMSEG_CMDL_TEST_FAMILY=$(FAMILY)
# Files are shared out whole, because their tests share what they have made. One thread each: threads
# of several processes on few cores wait for one another.
PYTEST = $(CLEAN_ENV) $(UNDER_TEST) OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test test-onedl test-guarantees docs lint format clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 18

$(STAMP): requirements.txt $(wildcard requirements/*.txt)
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 with venv was found;\
	 install one (Debian, Ubuntu: apt-get install python3-venv) or name it: make PYTHON=..." >&2; exit 1; }
	@echo "Installing the pinned requirements into $(VENV) (some minutes, once) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(REQUIREMENTS)
	@# onedl-mmsegmentation comes as source; it is built with the setuptools that was just pinned.
	$(PIP_INSTALL) --no-deps --no-build-isolation $(WITHOUT_DEPS)
	@# opencv-python needs libGL, which a machine without a desktop has not; headless does not.
	@$(BIN)/python -c 'import cv2' 2>/dev/null || $(PIP_INSTALL) --no-deps --force-reinstall $(HEADLESS)
	@touch $@

install: $(STAMP)  ## install the package itself, not editable, into .venv
	@rm -rf build
	@$(CLEAN_ENV) $(PIP_INSTALL) --quiet --no-deps --no-build-isolation --force-reinstall .

demo: install  ## train FCN and MDRL-FCN on synthetic scenes, compare them in a table and a figure
	$(CLEAN_ENV) $(BIN)/python tools/demo.py $(DEMO_ARGS)

test: install  ## run the tests against the installed package
	$(PYTEST) $(PYTEST_ARGS)

test-onedl:  ## run the tests on the maintained fork of MMSegmentation, in .venv-onedl
	@$(MAKE) --no-print-directory test FAMILY=onedl

test-guarantees: install  ## run the long tests of docs/guarantees.md too, an hour or more
	$(PYTEST) -o addopts=--import-mode=importlib tests/guarantees tests/deployment $(PYTEST_ARGS)

docs: $(STAMP)  ## build the site into docs/_build/html; warnings and dead links are errors
	@$(PIP_INSTALL) --quiet -r requirements/docs.txt
	$(CLEAN_ENV) $(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

lint: $(STAMP)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environments, builds and caches
	rm -rf $(VENV) .venv-onedl docs/_build build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
