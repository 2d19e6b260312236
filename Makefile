# make report   trains on real data, verifies, measures, draws: report/index.html
# make test     all checks and tests, as the continuous integration runs them
# make test-all with nothing sampled or kept, and a million calls of the fuzzer under sanitizers
# make fuzz     those calls alone
# make test-torch the same as test with other torch releases, each in a clone: build/torch-…
# make build    the environment in .venv and the compiled kernels
# make gpu      builds, tests, checks and measures on this machine's GPU: build/gpu
# make format   formats Python and C++, writes docs/losses.md's tables and benchmarks/README.md
# make clean    removes what was made, but for the environment
#
# Variables: PYTHON (to make .venv with; for make gpu: one that has torch with CUDA, which is used as
# it is), MAX_JOBS, LOSSOPS_CUDA, PYTEST_ARGS, GPU_OUT (a folder), GPU_ARGS (such as --dry), TORCH (a
# release in place of the pinned one), TORCH_VERSIONS (several, for make test-torch), FUZZ_CALLS (of
# each of two processes).

PYTHON ?= python3
PYTEST_ARGS ?= -n 2 --dist worksteal --timeout 1200
GPU_OUT ?= build/gpu
TORCH_VERSIONS ?= 2.10.0 2.14.1
OF_KERNELS := cuda_build cuda_on_cpu gpu_run softmax_on_cpu_device triton vectors_on_cpu_device

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.lossops-installed
OLDEST := $(VENV)/oldest-triton/.installed
BUILT := build/.built
SANITIZED := build/sanitized
FUZZ_CALLS ?= 500000
KERNELS := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# Python 3.10 has no TOML parser of its own; pip has.
define REQUIREMENTS
from pip._vendor import tomli
import os
project = tomli.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
wanted = [*extras["dev"], *extras["report"]]
if os.environ.get("TORCH"):
    pin = next(line for line in wanted if line.startswith("torch=="))
    wanted[wanted.index(pin)] = "torch==" + os.environ["TORCH"]
print(*wanted, sep="\n")
endef
export REQUIREMENTS
export TORCH
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: report test test-all nothing-kept fuzz test-torch gpu build format clean

report: build
	$(BIN)/python -m benchmarks report --out report

test: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(KERNELS)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: export LOSSOPS_TEST_ALL := 1
test-all: nothing-kept test fuzz

nothing-kept:
	rm -rf build/kernels

# In a build of its own. Its runtime, and the C++ library that it wraps, have to be there before Python.
# Tensors too large to allocate are part of what is tried.
fuzz: $(INSTALLED)
	LOSSOPS_CUDA=0 LOSSOPS_ISA=native LOSSOPS_SANITIZE=1 $(BIN)/python setup.py --quiet build \
	  --build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects
	seq 2 | LD_PRELOAD="$$(echo $$(for name in asan stdc++; do \
	    $${CXX:-g++} -print-file-name=lib$$name.so; done))" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 xargs -P 2 -I {} \
	  $(BIN)/python -m tests.fuzz --path $(SANITIZED) --calls $(FUZZ_CALLS)

# An extension fits the torch that it was built with: each has a clone. What tests of kernels alone
# find does not depend on torch.
test-torch:
	for version in $(TORCH_VERSIONS); do \
	  clone=build/torch-$$version; test -d $$clone || git clone --quiet . $$clone; \
	  git -C $$clone fetch --quiet origin HEAD && git -C $$clone checkout --quiet FETCH_HEAD && \
	  LOSSOPS_CUDA=0 LOSSOPS_ISA=native $(MAKE) -C $$clone test TORCH=$$version \
	    PYTEST_ARGS="$(PYTEST_ARGS) $(addprefix --ignore=tests/test_,$(OF_KERNELS:=.py))" || exit 1; \
	done

gpu:
	@PYTHON="$(PYTHON)" bash benchmarks/gpu.sh "$(GPU_OUT)" $(GPU_ARGS)

build: $(BUILT) $(OLDEST)

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(KERNELS)
	$(BIN)/python docs/table.py
	$(BIN)/python -m benchmarks.readme

clean:
	rm -rf build report plots lossops/_C.*.so .pytest_cache .ruff_cache .hypothesis *.egg-info

# Everything that pyproject.toml lists, torch and its pin included, and a pointer to the sources
# instead of an editable install, which would compile them a second time.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "lossops needs Python 3.10 or newer; set PYTHON=python3.12, say" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment with pip in it." \
	       "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --version > /dev/null || { \
	  echo "$(VENV) has no pip. Remove it, install your system's python3-venv, try again." >&2; \
	  exit 1; }
	$(BIN)/python -c "$$REQUIREMENTS" > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/requirements.txt
	@echo "$(CURDIR)" > \
	  "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/lossops-source.pth"
	@touch $@

# The oldest Triton that is promised, for the tests. Its interpreter needs a numpy of its time.
$(OLDEST): $(INSTALLED)
	version=$$(sed -n 's/^triton = \["triton>=\(.*\)"\]$$/\1/p' pyproject.toml) && \
	  $(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(@D) \
	    "triton==$$version.*" "numpy<2.4"
	@touch $@

$(BUILT): $(INSTALLED) setup.py $(KERNELS)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@mkdir -p $(@D) && touch $@
