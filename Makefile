# `make test` does all the set-up on a machine with Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

LOWEST := .venv-lowest

.PHONY: demo test gpu test-lowest quality style docs clean

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev,demo]"
	touch $(READY)

demo: $(READY)
	$(BIN)/python examples/detect.py --sample astronaut --labels person face --threshold 0.57

# The tests of a file share models, so a file stays on one process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test: $(READY)
	$(PYTEST)

# On a machine with one GPU: the tests that need it, and the table of docs/gpu.md, in at most 4 minutes.
gpu: $(READY)
	@status=0; \
	timeout --signal=INT 100 $(BIN)/python -m pytest tests/cuda -m cuda || status=$$?; \
	$(BIN)/python benchmarks/gpu.py --seconds 120 --output outputs/gpu || status=$$?; \
	[ $$status -ne 124 ] || echo "not all tests ran within 100 s; run the others by: pytest tests/cuda -m cuda" >&2; \
	exit $$status

quality: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site of docs/, in site/; broken links and references are errors.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

# The lower bounds of pyproject.toml, as constraints/lowest.txt pins them, in a virtual environment of their own. The
# tests of scripts as whole processes are left out: they take most of the time and none of them is about versions.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest --ignore tests/examples --ignore tests/hub --ignore tests/test_docs.py \
		--ignore tests/cli/test_transcript.py

$(LOWEST)/.installed: pyproject.toml constraints/lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints/lowest.txt --editable ".[train,eval,supervision]" \
		pytest scikit-image hypothesis
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) outputs site
