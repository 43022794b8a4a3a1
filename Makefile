# `make demo` and `make test` on a fresh clone: Python 3.11 with pip is all they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := NO_ALBUMENTATIONS_UPDATE=1 $(VENV)/bin/python

.PHONY: demo test install clean

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
test: install
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile tests

clean:
	rm -rf $(VENV) build *.egg-info
