# `make demo` and `make test` on a fresh clone: Python 3.11 with pip is all they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := NO_ALBUMENTATIONS_UPDATE=1 $(VENV)/bin/python

.PHONY: demo test test-fast coverage lint format docs tutorial model-zoo install clean

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

coverage: install
	$(PYTEST) --cov --cov-report=term:skip-covered tests

lint: install
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: install
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# Sphinx comes into the same environment: pages are made of the package's own docstrings.
$(VENV)/docs-installed: $(VENV)/installed docs/requirements.txt
	$(VENV)/bin/python -m pip install --progress-bar off -r docs/requirements.txt
	touch $@

docs: $(VENV)/docs-installed
	$(RUN) -m sphinx -W --keep-going -q -c docs . build/docs
	@echo build/docs/index.html

# Its outputs lie in the notebook.
tutorial: $(VENV)/docs-installed
	$(RUN) docs/run_tutorial.py

model-zoo: install
	$(RUN) docs/model_zoo.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
