# Two commands, each from nothing: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint mutants clean

demo: $(VENV)/.installed
	$(BIN)/glm-export demo --out out/demo

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Small faults planted in the pure modules, one at a time; lists those no test noticed. Minutes, not part of `test`.
SEED ?= 1
COUNT ?= 40
mutants: $(VENV)/.installed-for-tests
	$(BIN)/python tests/mutants/plant.py --seed $(SEED) --count $(COUNT)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# onnxruntime-genai without its dependency onnxruntime, whose files would overwrite those of onnxruntime-gpu; it runs on
# either. Where it has no wheel its tests are skipped.
$(VENV)/.installed-for-tests: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	-$(BIN)/python -m pip install --quiet --no-deps onnxruntime-genai==0.18.0
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
