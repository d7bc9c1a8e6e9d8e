# `make demo` and `make test` do all their own set-up, in .venv.

PYTHON ?= python3
BIN := .venv/bin
BOOK := .demo/alice.txt

.PHONY: demo test quick lint docs lowest kernels families clean

demo: .venv/installed $(BOOK)
	$(BIN)/allmem_mlx generate --prompt-file $(BOOK) \
	    --save-state .demo/alice.allmem --max-tokens 30 \
	    --prompt "What was written on the bottle?" \
	    --prompt "What words were marked on the cake?" \
	    --prompt "What did the White Rabbit drop?"

PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

test: .venv/tested lint
	$(PYTEST) --durations=15

# In under 3 minutes, without a network.
quick: .venv/tested
	$(PYTEST) -m "not real_model and not slow"

lint: .venv/tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/documented
	$(BIN)/sphinx-build -E -W --keep-going -q -d build/doctrees docs build/docs
	@echo build/docs/index.html

# The lowest versions that pyproject.toml allows, for `make test` to try.
lowest: .venv/tested
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    $$(sed -nE 's/^  "([a-z0-9-]+([[]cpu])?)>=([0-9.]+).*/\1==\3/p' pyproject.toml)

kernels: .venv/tested
	$(BIN)/python tests/model_launches.py
	$(BIN)/python tests/kernel_account.py

families: .venv/tested
	PYTHONPATH=tests $(BIN)/python tests/family_table.py

clean:
	rm -rf .venv .demo build *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,documents]'
	touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,documents,dev]'
	touch $@

.venv/documented: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,documents,docs]'
	touch $@

$(BOOK): .venv/installed
	$(BIN)/python examples/fetch_alice.py $@ 3
