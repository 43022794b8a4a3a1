# `make demo` and `make test` on a fresh clone: Python 3.11 with pip is all they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := NO_ALBUMENTATIONS_UPDATE=1 $(VENV)/bin/python

.PHONY: demo test test-fast lint format install clean

# The stamp lies in the environment: delete the environment, and it is made again.
$(VENV)/installed: requirements.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --progress-bar off -r requirements.txt
	touch $@

install: $(VENV)/installed

demo: install
	$(RUN) tools/demo.py

# Two processes of one thread each: the tests' networks are small, and threads that wait for a busy
# core cost more.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

test: install
	$(PYTEST) tests

test-fast: install
	$(PYTEST) -m "not slow" tests

lint: install
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: install
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
