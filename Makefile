# `make test` does all the set-up on a machine with Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: demo test quality style clean

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev,demo]"
	touch $(READY)

demo: $(READY)
	$(BIN)/python examples/detect.py --sample astronaut --labels woman helmet --threshold 0.3

test: $(READY)
	$(BIN)/python -m pytest

quality: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) outputs
