# Two commands on a fresh machine; each makes its own virtual environment.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test docs notebooks lint clean

demo: .venv/demo.done
	$(BIN)/tapstudy demo

lint: .venv/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

notebooks: .venv/test.done
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.notebooks.store

docs: .venv/docs.done
	$(BIN)/mkdocs build --strict --quiet

.venv/demo.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[study]' --constraint constraints.txt
	touch $@

.venv/test.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]' --constraint constraints.txt
	touch $@

.venv/docs.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[docs]' --constraint constraints.txt
	touch $@

clean:
	rm -rf .venv
