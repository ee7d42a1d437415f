# Two commands, each from nothing: `make demo` and `make test`. `make lock` renews requirements/*.lock.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs mutants attack attack-guided attack-server kills lm-eval loaders notebook rehearse-gpu lock clean

demo: $(VENV)/.installed
	$(BIN)/glm-export demo --out out/demo

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation as a site, in site/: open site/index.html, no server is needed. A link that leads nowhere ends it.
docs: $(VENV)/.installed-for-tests
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

# Small faults planted in the pure modules, one at a time; lists those no test noticed. Minutes, not part of `test`.
SEED ?= 1
COUNT ?= 40
mutants: $(VENV)/.installed-for-tests
	$(BIN)/python tests/mutants/plant.py --seed $(SEED) --count $(COUNT)

# What CI and images install, with hashes (docs/adr/0017-locks-without-torch.md), and whether any of it is known to be
# vulnerable; what could not be looked up counts as that. Torch is chosen by the machine, and in neither lock.
LOCKING := .venv-lock/bin
COMPILE := $(LOCKING)/uv pip compile pyproject.toml --config-file requirements/uv.toml --no-emit-package torch \
	--universal --python-version 3.11 --generate-hashes --upgrade --quiet --custom-compile-command 'make lock'
lock:
	$(PYTHON) -m venv .venv-lock
	$(LOCKING)/python -m pip install --quiet --upgrade uv pip-audit
	$(COMPILE) --output-file requirements/run.lock
	$(COMPILE) --extra serve --extra store --output-file requirements/serve.lock
	$(COMPILE) --extra test --output-file requirements/ci.lock
	$(LOCKING)/pip-audit --strict --disable-pip --require-hashes --requirement requirements/ci.lock

# Damaged and hostile inputs for every reader, each in a process with limits; counts, and what held none. Minutes.
ATTACKS ?= 5000
attack: $(VENV)/.installed-for-tests
	$(BIN)/python tests/attacks/run.py --seed $(SEED) --count $(if $(filter file,$(origin COUNT)),$(ATTACKS),$(COUNT))

# The same contract, guided by which code an input reaches; where atheris has a wheel (Linux, not on every Python).
GUIDED_SECONDS ?= 30
attack-guided: $(VENV)/.installed-for-tests
	$(BIN)/python -m pip install --quiet 'atheris>=3'
	$(BIN)/python tests/attacks/guided.py --seed $(SEED) --seconds $(GUIDED_SECONDS)

# Requests nobody should send, to a server: valid ones changed, and those schemathesis makes of its OpenAPI document.
REQUESTS ?= 2000
attack-server: $(VENV)/.installed-for-tests
	$(PYTHON) -m venv .venv-schemathesis
	.venv-schemathesis/bin/python -m pip install --quiet 'schemathesis>=4.32,<5'
	$(BIN)/python tests/attacks/server.py --seed $(SEED) --count $(REQUESTS) \
		--schemathesis .venv-schemathesis/bin/schemathesis

# Verbs that write, killed at random moments and before every step that matters; and run again. Minutes.
KILLS ?= 100
kills: $(VENV)/.installed-for-tests
	$(BIN)/python tests/attacks/kills.py --seed $(SEED) --count $(if $(filter file,$(origin COUNT)),$(KILLS),$(COUNT))

# Exported folders scored by EleutherAI's harness, in an environment of its own: 1 GB, which is why it is not in `test`.
lm-eval: $(VENV)/.installed-for-tests
	$(PYTHON) -m venv $(VENV)/lm-eval
	$(VENV)/lm-eval/bin/python -m pip install --quiet 'lm_eval[onnxruntime]==0.4.13'
	$(BIN)/python -m pytest tests/exporter/test_lm_eval.py

# Exported folders in transformers.js and ONNX Runtime for Node.js (npm, 500 MB), in Foundry Local, and the fault that
# onnxruntime-genai shows on a model of its own builder, which wants a transformers that Optimum does not take.
loaders: $(VENV)/.installed-for-tests
	npm install --prefix $(VENV)/node --ignore-scripts --no-fund --no-audit @huggingface/transformers@4.3.2
	$(PYTHON) -m venv $(VENV)/foundry
	$(VENV)/foundry/bin/python -m pip install --quiet foundry-local-sdk==2.2.1
	$(BIN)/python -m pip install --quiet --no-warn-conflicts --upgrade --target $(VENV)/genai-builder 'transformers>=5.20,<6'
	$(BIN)/python -m pytest tests/exporter/test_other_programs.py tests/exporter/test_genai_turns.py

# The notebook of examples/ in Jupyter itself, apart from everything else: 120 MB.
notebook: $(VENV)/.installed-for-tests
	$(BIN)/python -m pip install --quiet --no-warn-conflicts --upgrade --target $(VENV)/jupyter 'nbconvert>=7.16,<8' 'ipykernel>=7,<8'
	$(BIN)/python -m pytest tests/examples/test_notebook.py

# The GPU kit on a machine without network, played on this one: 5 GB of packages, and the minutes of the budget.
GPU_SECONDS ?= 1800
rehearse-gpu: $(VENV)/.installed-for-tests
	bash benchmarks/gpu/run.sh --python $(CURDIR)/$(BIN)/python --rehearse --budget $(GPU_SECONDS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# onnxruntime-genai without its dependency onnxruntime, whose files would overwrite those of onnxruntime-gpu; it runs on
# either. And ONNX Runtime 1.32 apart from the GPU wheel, which is older: what only it can do is tested on it. Triton's
# client without its dependencies, of which it takes only older ones, and runs on these. Its server apart, in a wheel for
# Linux on x86-64, with a numpy that this server's Python backend can read. OpenVINO, which reads exported folders, apart
# as well. Where a wheel is missing its tests are skipped.
$(VENV)/.installed-for-tests: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	-$(BIN)/python -m pip install --quiet --no-deps onnxruntime-genai==0.18.0
	-$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/later 'onnxruntime>=1.32,<1.33'
	-$(BIN)/python -m pip install --quiet --no-deps tritonclient==2.73.0 'grpcio>=1.81.1,<2' 'python-rapidjson>=1.20'
	-$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/triton nvidia-pytriton==0.7.0
	-$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/triton numpy==1.26.4
	-$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/openvino openvino==2026.4.1
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .venv-schemathesis out site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
