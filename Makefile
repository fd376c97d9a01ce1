# make demo: see it answer the question.   make test: everything, as CI runs it.   make help: the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CONSTRAINTS := -c tests/constraints.txt

.PHONY: help demo test check format bench bench-cpu docs models corpus corpus-report clean

help:
	@echo "make demo     build $(VENV) with the light dependencies, answer the question, look at a real model"
	@echo "make test     install all frameworks (CPU builds) into $(VENV) and run every test"
	@echo "make check    ruff, pyright (strict) and the import rules"
	@echo "make format   ruff format, and ruff's own fixes"
	@echo "make bench    the figures: accuracy against its bounds, start-up against import keras, layers against theirs"
	@echo "make bench-cpu  speed on the CPU beside torch, JAX, TensorFlow and onnxruntime, in two minutes (all: benchmarks/cpu.py)"
	@echo "make docs     regenerate the tables that docs/ takes from the code"
	@echo "make corpus   train the networks of tests/corpus anew and plant their faults; corpus-report: recall, false alarms"
	@echo "make models   write the model files of examples/ anew, with Keras"

demo: $(VENV)/.light
	$(BIN)/batchnorm demo
	$(BIN)/batchnorm list examples/digits.keras
	$(BIN)/batchnorm explain examples/question.keras --x 1,5 --expect -1,1

test: $(VENV)/.tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	PYTHONPATH=src $(BIN)/lint-imports

format: $(VENV)/.tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.tests
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/large_files.py
	$(BIN)/python benchmarks/agreement.py
	$(BIN)/python benchmarks/torch_layers.py
	$(BIN)/python benchmarks/keras_layers.py
	$(BIN)/python benchmarks/step_flax.py
	$(BIN)/python benchmarks/debiasing_flax.py
	$(BIN)/python benchmarks/cpu_kernels.py
	$(BIN)/python benchmarks/folding.py

bench-cpu: $(VENV)/.tests
	$(BIN)/python benchmarks/cpu.py --short

docs: $(VENV)/.tests
	$(BIN)/python tests/analysis/test_golden.py
	$(BIN)/python tests/docs/test_readme.py
	$(BIN)/python docs/conventions.py
	$(BIN)/python docs/rules.py

models: $(VENV)/.tests
	KERAS_BACKEND=jax $(BIN)/python examples/make_models.py

corpus: $(VENV)/.tests
	rm -rf tests/corpus/files tests/corpus/holdout/files
	KERAS_BACKEND=jax $(BIN)/python tests/corpus/make_keras.py
	$(BIN)/python tests/corpus/make_torch.py
	$(BIN)/python tests/corpus/make_flax.py
	KERAS_BACKEND=jax $(BIN)/python tests/corpus/make_more_keras.py
	$(BIN)/python tests/corpus/make_more_torch.py
	$(BIN)/python tests/corpus/manifest.py corpus
	$(BIN)/python tests/corpus/holdout/make_keras.py
	$(BIN)/python tests/corpus/holdout/make_torch.py
	$(BIN)/python tests/corpus/holdout/make_flax.py
	$(BIN)/python tests/corpus/manifest.py holdout

corpus-report: $(VENV)/.tests
	$(BIN)/python tests/corpus/report.py --others

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.light: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable .
	touch $@

# torch by its exact version: any other request for it brings gigabytes of CUDA along.
$(VENV)/.tests: pyproject.toml tests/constraints.txt tests/requirements.txt tests/models.txt $(VENV)/.light
	$(PIP) $$(grep '^torch==' tests/constraints.txt)
	$(PIP) $(CONSTRAINTS) -r tests/requirements.txt --editable .
	$(PIP) --no-deps -r tests/models.txt
	touch $@
