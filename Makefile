# Every target sets up what it needs in .venv: Python 3.11 or later and make are enough.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SHAPES := --jaxtyping-packages=minimax_numpy,minimax_torch,beartype.beartype
INTERPRETED := $(patsubst %,tests/equivalence/test_%.py,attend fused kernels segments slots)
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow lint docs browse notebooks generated tiny clean

demo: .venv/torch  ## cross-check the small model, and generate from it with both twins
	@$(BIN)/minimax-twin demo

test: .venv/test  ## every test but the slow ones, then some of them again with the shapes in signatures checked
	$(BIN)/python -m pytest -n 2 -m "not slow" --doctest-modules tests reference
	$(BIN)/python -m pytest -n 2 -m "not slow" $(SHAPES) tests/equivalence $(INTERPRETED:%=--ignore=%)

test-slow: .venv/test  ## the slow tests
	$(BIN)/python -m pytest -n 2 -m slow tests
	$(BIN)/python -m pytest -n 2 $(SHAPES) $(INTERPRETED)

lint: .venv/test  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs  ## build the site into site/
	$(BIN)/mkdocs build --strict --quiet

browse: .venv/test docs  ## look at every page of the site in a browser; needs Chromium
	$(BIN)/python tests/docs/browse.py

notebooks: .venv/test  ## run every notebook from top to bottom
	$(BIN)/python -m pytest -n 2 tests/notebooks/test_notebooks.py

generated: .venv/test  ## make again what is made by scripts: notebooks, figures, lists, tables, slides, questions, times
	$(BIN)/python tests/notebooks/remake.py
	set -e; for script in $(filter-out %/kit.py,$(wildcard docs/figures/*.py)); do $(BIN)/python $$script; done
	$(BIN)/python docs/reference/make_api.py
	$(BIN)/python docs/reference/make_tables.py
	$(BIN)/python docs/reference/make_exercises.py
	$(BIN)/python docs/proof/make_defects.py
	$(BIN)/python docs/proof/make_samples.py
	$(BIN)/python docs/teach/make_slides.py
	$(BIN)/python docs/teach/make_bank.py
	$(BIN)/python docs/make_pages.py

tiny: .venv/text  ## make the small model that ships with the package again
	$(BIN)/python -m minimax_numpy.shipped

.venv/pip:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/torch .venv/text .venv/test .venv/docs: .venv/%: .venv/pip pyproject.toml constraints.txt
	@echo "installing minimax-twin[$*] into .venv"
	@$(INSTALL) -e '.[$*]'
	@touch $@

clean:
	rm -rf .venv site
