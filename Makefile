# Everything runs in .venv, which is made once by whichever target comes first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-full check docs linkcheck bench dist clean

demo: $(READY)  ## the whole journey on drawn street scenes
	$(BIN)/hat demo

test: $(READY)  ## the tests, in under ten minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

test-full: $(READY)  ## the tests with their full counts, in under an hour
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile -m "slow or not slow" --timeout 3600

check: $(READY)  ## format, lint, import contracts, spelling, types, licences
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell hatcli tests docs benchmarks README.md CHANGELOG.md
	$(BIN)/mypy
	$(BIN)/python tests/licences.py

docs: $(READY)  ## the site, in build/docs; a warning or a broken link is an error
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -q -W --keep-going -n -b html docs build/docs

linkcheck: $(READY)  ## whether links to other sites lead somewhere; needs the network
	$(BIN)/sphinx-build -q -b linkcheck -D plot_gallery=0 docs build/linkcheck

bench: $(READY)  ## ratios against bare baselines, one after the other
	for file in benchmarks/*.py benchmarks/quantization/latency.py benchmarks/quantization/steps.py; do $(BIN)/python $$file || exit 1; done

dist: $(READY)  ## the wheel and the source archive, in dist/
	rm -rf dist hatcli.egg-info
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) demo build dist docs/gallery *.egg-info

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hat needs Python 3.11 or newer")'
	@echo "making $(VENV), once: some minutes, most of them for torch"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "setuptools<82" wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[dev,docs,all,video]"
	touch $(READY)
