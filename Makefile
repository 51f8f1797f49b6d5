# Every target works on a fresh clone: the first one installs the pinned dependencies into .venv.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test check format catalogue lock bench bench-search clean

install: .venv/installed

.venv/installed: requirements/dev.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Graft needs Python 3.11 or newer; set PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: install  ## a real transfer job, end to end, on handwritten digits
	$(BIN)/python demo/digits.py

test: install  ## everything that needs no GPU, on private real servers
	$(BIN)/python -m pytest -m "not gpu" -n 2 --dist loadfile

check: install  ## style, types, layers, migrations, catalogue
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m store.migrate check
	$(BIN)/python -m worker.catalogue --check
	$(BIN)/python -m worker.methods_page --check

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

catalogue: install  ## rewrite domain/catalogue.json and docs/methods.md from the files of parts, backbones and tasks
	$(BIN)/python -m worker.catalogue
	$(BIN)/python -m worker.methods_page

lock:  ## pin again: names, versions and hashes only (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-header --no-annotate --python-version 3.11 -o requirements/dev.lock
	for extra in server worker; do uv pip compile pyproject.toml --extra $$extra --universal --generate-hashes --no-header --no-annotate --python-version 3.11 -c requirements/dev.lock -o requirements/$$extra.lock; done

bench: install  ## the figures of benchmarks/, printed as a table and kept in benchmarks/out/
	$(BIN)/python -m benchmarks

bench-search: install  ## samplers replayed on recorded fine-tuning, then whole searches beside what else there is; hours
	$(BIN)/python -m benchmarks optimizers
	$(BIN)/python -m benchmarks searches --make-rivals
	$(BIN)/python -m benchmarks searches

clean:
	rm -rf .venv *.egg-info
