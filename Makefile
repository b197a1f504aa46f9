# Two commands on a fresh machine; each makes its own virtual environment.
PYTHON ?= python3
BIN := .venv/bin
# glibc otherwise hands large buffers back to the system after every use: a fifth of a full pass on a processor
QUIET_MALLOC := MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456

.PHONY: demo test lint clean

demo: .venv/demo.done
	$(QUIET_MALLOC) $(BIN)/tapstudy demo --study data/study

test: .venv/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(PYTEST_ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --nbmake notebooks

.venv/demo.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable . --constraint constraints.txt
	touch $@

.venv/test.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]' --constraint constraints.txt
	touch $@

clean:
	rm -rf .venv
