# make report   trains on real data, verifies, measures, draws: report/index.html
# make test     all checks and tests, as the continuous integration runs them
# make test-all the same, and a million calls of the fuzzer under sanitizers
# make build    the environment in .venv and the compiled kernels
# make gpu      builds, tests, checks and measures on this machine's GPU: build/gpu
# make format   formats Python and C++, writes the README's tables of losses, benchmarks/README.md
# make clean    removes what was made, but for the environment
#
# Variables: PYTHON (to make .venv with; for make gpu: one that has torch with CUDA, which is used as
# it is), MAX_JOBS, LOSSOPS_CUDA, PYTEST_ARGS, GPU_OUT (a folder), GPU_ARGS (such as --dry).

PYTHON ?= python3
PYTEST_ARGS ?= -n 2 --dist worksteal --timeout 1200
GPU_OUT ?= build/gpu

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.lossops-installed
BUILT := build/.built
SANITIZED := build/sanitized
FUZZ_CALLS ?= 500000
KERNELS := $(shell find csrc tests -name '*.h' -o -name '*.inc' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# Python 3.10 has no TOML parser of its own; pip has.
define REQUIREMENTS
from pip._vendor import tomli
project = tomli.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
print(*extras["dev"], *extras["report"], sep="\n")
endef
export REQUIREMENTS
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: report test test-all gpu build format clean

report: build
	$(BIN)/python -m lossops report --out report

test: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(KERNELS)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# In a build of its own, whose runtime has to be there before Python.
test-all: test
	LOSSOPS_CUDA=0 LOSSOPS_SANITIZE=1 $(BIN)/python setup.py --quiet build \
	  --build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects
	seq 2 | LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 xargs -P 2 -I {} \
	  $(BIN)/python -m tests.fuzz --path $(SANITIZED) --calls $(FUZZ_CALLS)

gpu:
	@PYTHON="$(PYTHON)" bash benchmarks/gpu.sh "$(GPU_OUT)" $(GPU_ARGS)

build: $(BUILT)

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

$(BUILT): $(INSTALLED) setup.py $(KERNELS)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@mkdir -p $(@D) && touch $@
