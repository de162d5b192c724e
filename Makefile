# `make demo` and `make test` set up everything they need in .venv first.
# The first interpreter torch 2.13 has a build for.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# Two workers of one thread each beat one worker of two on small tensors. A file stays in one: its fixtures are made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-all test-browser docs versions mutants golden sanitize fuzz faults lint format bench wheel wheel-aarch64 clean

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/.ready
	$(BIN)/qdiff demo --out out/demo

test: .venv/.ready
	$(PYTEST) -m "not slow and not browser"

test-all: .venv/.ready
	$(PYTEST) --hypothesis-profile=thorough

# The page of `qdiff report` in Chromium.
test-browser: .venv/.ready
	command -v chromium || command -v chromium-browser || { apt-get update && apt-get install -y chromium; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser

# The documentation as a site, build/site; a broken link is an error.
docs: .venv/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The oldest and the newest versions that pyproject.toml claims, each in an environment of its own; takes gigabytes.
versions: wheel
	$(BIN)/python -m tests.versions dist/qdiff_fx-*.whl

# Every result, to the bit, against what is recorded for this kind of processor; see tests/golden/__init__.py.
golden: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.golden --check

# The kernels under AddressSanitizer and UBSan. Python is not built with them, so their libraries go before it.
SANITIZE := QDIFF_KERNELS_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -g -O1" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=6144
SANITIZE += LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libubsan.so)"

sanitize: .venv/.ready
	$(SANITIZE) OMP_NUM_THREADS=2 $(BIN)/python -m pytest -p no:xdist tests/kernels/test_integer.py \
		tests/kernels/test_attention_vnni.py tests/kernels/test_hostile_arguments.py tests/backends/test_native.py \
		tests/backends/test_plan.py
	$(SANITIZE) OMP_NUM_THREADS=2 $(BIN)/python -m tests.fuzz.operators --count $(COUNT) --seed $(SEED)
	$(SANITIZE) OMP_NUM_THREADS=2 $(BIN)/python -m tests.fuzz.folders --count 1000 --seed $(SEED)

# Random and hostile calls, networks and folders; COUNT and SEED choose how many and which.
COUNT ?= 20000
SEED ?= 0
fuzz: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.operators --count $(COUNT) --seed $(SEED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.graphs --count 1000
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.folders --count 2000 --seed $(SEED)

# Long operations killed at random moments.
KILLS ?= 200
faults: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --kills $(KILLS)

# Faults put into a copy of the package, each of which some test has to notice.
mutants: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.ready
	$(BIN)/python -m pytest benchmarks --benchmark-only

WHEEL := PYTHONPATH=. $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

# A wheel with compiled kernels of every instruction set of this machine.
wheel: .venv/.ready
	rm -rf build
	QDIFF_WHEEL=$$(uname -m) $(WHEEL)

# The same for 64-bit ARM, with a cross compiler: on Debian that of the package g++-aarch64-linux-gnu.
wheel-aarch64: .venv/.ready
	rm -rf build
	QDIFF_WHEEL=aarch64 CXX=aarch64-linux-gnu-g++ $(WHEEL)

clean:
	rm -rf .venv build dist out *.egg-info
