# Everything runs from a fresh clone with python3 and make:  make setup | demo | test | slow | contract | package | fuzz | bench | bench-accuracy
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
JOBS ?= 2

TYPED := tests models/digits.py models/train_digits.py noxfile.py
BENCHMARKS := $(filter-out $(wildcard benchmarks/accuracy*.py),$(sort $(wildcard benchmarks/*.py)))

.PHONY: setup demo test lint types tests slow contract package docs options half fuzz bench bench-accuracy clean

setup: $(VENV)/.ready-dev

# The stamps are as old as what they were made from, so an edit of the lists installs again.
$(VENV)/.ready-dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev,tensorrt-rtx]'
	touch $@

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.ready-bench: $(VENV)/.ready-dev
	$(PIP) --editable '.[dev,bench,tensorrt-rtx]'
	touch $@

demo: $(VENV)/.ready
	mkdir -p out
	$(BIN)/sparsecc compile models/digits_resnet.onnx --speedup 2 --budget 45s --calib models/digits.py:calibration \
		--eval models/digits.py:accuracy -o out/demo --force

test: lint types tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy -p sparsecc
	$(BIN)/mypy $(TYPED)

# Every worker that a test starts imports us: from byte code even where Python is told to write none.
tests: setup
	$(BIN)/python -m compileall -q sparsecc passes backends
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

slow: setup
	$(BIN)/python -m pytest -n $(JOBS) -m "slow and not gpu"

# Downloads NVIDIA's Python bindings of TensorRT 10 and 11 (2 MB) and checks every use of them.
contract: setup
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_tensorrt_contract.py

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

options: setup
	$(BIN)/python -m sparsecc.options.page > docs/options.md

half: setup
	$(BIN)/python -m sparsecc.passes.quantize.half_page > docs/half.md

package: setup
	$(BIN)/python -m pytest -m "not gpu" tests/test_packaging.py

fuzz: setup
	$(PIP) atheris
	$(BIN)/python -m tests.fuzz.run --seconds 1200
	$(BIN)/python -m pytest -n $(JOBS) -m "fuzz and not gpu"

bench: $(VENV)/.ready-bench
	set -e; for script in $(BENCHMARKS); do $(BIN)/python $$script; done

# Goes on where it was stopped; make bench-accuracy ARGS='--pairs resnet20 --seconds 240' does a part.
bench-accuracy: $(VENV)/.ready-bench
	$(BIN)/python benchmarks/accuracy.py $(ARGS)

# Its own environment: what looks at the packages is none of them.
$(VENV)/.ready-tools: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PYTHON) -m venv $(VENV)/tools
	$(VENV)/tools/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		cyclonedx-bom pip-audit
	touch $@

sbom: setup $(VENV)/.ready-tools
	mkdir -p out
	$(VENV)/tools/bin/cyclonedx-py environment --output-reproducible --of JSON --pyproject pyproject.toml \
		-o out/sbom.json $(BIN)/python

# Asks the vulnerability database over the network, so it is no part of `make test`.
audit: setup $(VENV)/.ready-tools
	$(VENV)/tools/bin/pip-audit --progress-spinner off --path "$$($(BIN)/python -c \
		'import sysconfig; print(sysconfig.get_path("purelib"))')"

clean:
	rm -rf build out
