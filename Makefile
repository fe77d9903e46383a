# One virtual environment for everything, made from the pinned requirements at first need.
#
#   PYTHON    the interpreter that makes it (default: the first of 3.11, 3.12, 3.13 that is there)
#   FAMILY    openmmlab (default), or onedl: the maintained fork of MMSegmentation
#   VENV      where it goes (default: .venv, with FAMILY=onedl .venv-onedl)
#   PIP_ARGS  options of pip for every install, for instance an index of your own; see also
#             requirements/install.py
#   WORKERS   processes that share the tests, each on one thread (default: as many as cores, at most 4)
#   PYTEST_ARGS, DEMO_ARGS   passed on

FAMILY ?= openmmlab
ifeq ($(FAMILY),openmmlab)
VENV ?= .venv
else ifeq ($(FAMILY),onedl)
VENV ?= .venv-onedl
else
$(error FAMILY must be openmmlab or onedl, not $(FAMILY))
endif
PIP_ARGS ?=
PYTEST_ARGS ?=
DEMO_ARGS ?=
WORKERS ?= auto --maxprocesses 4
# A PYTHONPATH from outside could put a checkout before the installed package, and without bytecode
# each of the many processes would compile anew all that it imports, 5 s of a core.
CLEAN_ENV := env -u PYTHONPATH -u PYTHONHOME -u PYTHONDONTWRITEBYTECODE
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$(CLEAN_ENV) $$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	2>/dev/null && { echo $$p; break; }; done)

BIN := $(VENV)/bin
# What the tests are to find: the installed package, and this family.
UNDER_TEST := MMSEG_CMDL_TEST_INSTALLED=1 MMSEG_CMDL_TEST_FAMILY=$(FAMILY)
# Files are shared out whole, because their tests share what they have made. One thread each: threads
# of several processes on few cores wait for one another.
PYTEST = $(CLEAN_ENV) $(UNDER_TEST) OMP_NUM_THREADS=1 "$(BIN)/pytest" -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test test-onedl test-guarantees docs lint format clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 18

# The environment with the requirements of demo or dev, and in it, with `install`, the package itself.
requirements = python="$(PYTHON)"; test -n "$$python" || { echo "error: no Python 3.11, 3.12 or 3.13 with venv\
 was found; install one (Debian, Ubuntu: apt-get install python3-venv) or name it: make PYTHON=..." >&2; exit 1; }; \
	$(CLEAN_ENV) "$$python" requirements/install.py "$(VENV)" $(1) --family $(FAMILY)

install:  ## install the package itself, not editable, into .venv, with all that the tests need
	@$(call requirements,dev) -- $(PIP_ARGS)

demo:  ## train three models to tell climates in satellite pictures; a table and a map
	@$(call requirements,demo) -- $(PIP_ARGS)
	$(CLEAN_ENV) "$(BIN)/python" tools/demo.py $(DEMO_ARGS)

test: install  ## run the tests against the installed package
	$(PYTEST) $(PYTEST_ARGS)

test-onedl:  ## run the tests on the maintained fork of MMSegmentation, in .venv-onedl
	@$(MAKE) --no-print-directory test FAMILY=onedl

test-guarantees: install  ## run the long tests of docs/guarantees.md too, an hour or more
	$(PYTEST) -o addopts=--import-mode=importlib tests/guarantees tests/deployment tests/test_tutorials.py $(PYTEST_ARGS)

docs:  ## build the site into docs/_build/html; warnings and dead links are errors
	@$(call requirements,docs) --requirements-only -- $(PIP_ARGS)
	$(CLEAN_ENV) "$(BIN)/python" -m sphinx -q -W --keep-going -b html docs docs/_build/html

lint:  ## check style, formatting and types
	@$(call requirements,dev) --requirements-only -- $(PIP_ARGS)
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"

format:  ## mend what ruff can mend
	@$(call requirements,dev) --requirements-only -- $(PIP_ARGS)
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .

clean:  ## remove the environments, builds and caches
	rm -rf "$(VENV)" .venv-onedl docs/_build build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
