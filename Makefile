# `make demo` and `make test` do all of their own set-up; a second call is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check docs families fuzz kill thorough format clean

demo: $(STAMP)  ## the embedded model, cut to about a third, into runs/demo
	$(BIN)/prunetune run demo
	@echo "for prunetune in this shell: . $(BIN)/activate"

test: $(STAMP)  ## the whole suite, offline
	$(BIN)/python -m pytest -q

check: $(STAMP)  ## lint, types, layering, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q

docs: $(STAMP) $(VENV)/.docs  ## the site, into site/: offline, the notebook run, a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean
	@echo "site/ is made; to read it with search: $(BIN)/python -m http.server -d site -b 127.0.0.1"

families: $(STAMP)  ## docs/families.md: family x axis x method x engine, from the tests' own lists
	PYTHONPATH=. $(BIN)/python docs/families.py

fuzz: $(STAMP)  ## 10,000 damaged inputs for every reader (the suite tries 400): minutes
	PRUNETUNE_FUZZ=10000 $(BIN)/python -m pytest -q tests/fuzz

kill: $(STAMP)  ## a run killed thirty times, and its disk filled as often; PRUNETUNE_SEED draws other moments
	PRUNETUNE_KILLS=30 PRUNETUNE_THOROUGH=1 $(BIN)/python -m pytest -q -n 0 --timeout 1800 tests/loop/test_rough_days.py

thorough: $(STAMP)  ## the tests that the suite leaves out, as they take minutes: families like others, two processes, lm-eval
	PRUNETUNE_THOROUGH=1 $(BIN)/python -m pytest -q -m thorough

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch comes first and by pip alone, so that the pinned build is taken as it lies.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,eval,gguf,quantize]'
	touch $(STAMP)

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) runs site dist .pytest_cache .mypy_cache .ruff_cache
