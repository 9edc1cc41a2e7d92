# mural: `make help` is the manual.  One non-recursive makefile; everything it makes is under build/.
#
# Knobs: SAN=address (or thread) builds that variant beside the normal one; CUDA_ARCH="80 90" chooses
# GPU generations; CC chooses the compiler.

SHELL   := /bin/bash
CC      ?= gcc
ifeq ($(origin CC),default)
CC      := gcc
endif
NVCC    ?= $(firstword $(wildcard /usr/local/cuda/bin/nvcc) $(shell command -v nvcc 2>/dev/null))
SAN     ?=
VARIANT := $(if $(SAN),$(SAN),release)
B       := build/$(VARIANT)

PACKAGES := gcc libc6-dev make libtiff-dev libpng-dev zlib1g-dev libdnnl-dev libjansson-dev \
            libyaml-dev libdeflate-dev libzstd-dev liblcms2-dev libutf8proc-dev \
            libxxhash-dev libcmocka-dev zstd xz-utils
LIBS     := -ltiff -lpng -lz -ldnnl -ljansson -lyaml -ldeflate -lzstd -llcms2 -lutf8proc \
            -lxxhash -lm -lpthread

CFLAGS  := -std=c11 -D_GNU_SOURCE -Wall -Wextra -Wpedantic -Wshadow -Wconversion \
           -Wstrict-prototypes $(if $(CI),-Werror) -O2 -g -fno-math-errno -fopenmp -Isrc -I. -MMD -MP
# Libraries are looked for beside the program, as `make bundle` lays them out, and then as usual; in
# the old way, which also holds for libraries of libraries and for those found later.
LDFLAGS := -fopenmp -Wl,--disable-new-dtags,-rpath,'$$ORIGIN/lib'
ifeq ($(SAN),address)
CFLAGS  += -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
LDFLAGS += -fsanitize=address,undefined
else ifeq ($(SAN),thread)
CFLAGS  += -fsanitize=thread
LDFLAGS += -fsanitize=thread
else ifneq ($(SAN),)
$(error SAN is '$(SAN)'; it must be address or thread)
endif

# With the CUDA toolkit a GPU backend is built in.  Nothing of the toolkit is needed to start the
# program: the runtime is linked statically, cuBLASLt and cuDNN are found when a GPU is asked for.
CUDA_HOME := $(if $(NVCC),$(abspath $(dir $(NVCC))/..))
CUDNN     := $(if $(NVCC),$(firstword $(wildcard $(CUDA_HOME)/include/cudnn_graph.h \
                 /usr/include/cudnn_graph.h /usr/include/x86_64-linux-gnu/cudnn_graph.h)))
CUDA_C    := $(wildcard src/*/cuda_*.c src/*/*_cuda.c)
ifneq ($(NVCC),)
NOT_BUILT := src/backend/cuda_absent.c \
             $(if $(CUDNN),src/backend/cuda_nograph.c,src/backend/cuda_graph.c src/backend/cuda_graph_build.c)
# GPU code knows no sanitizer: the variants share it.  One generation runs on all that share its
# first digits: 80 on 86 and 89 too, 100 on 103, 120 on 121.  The last one named is the newest, and
# what is newer still translates its intermediate code when it starts.
CUDA_ARCH    ?= 80 90 100 120
empty        :=
CUDA_B       := build/cuda-$(subst $(empty) ,-,$(strip $(CUDA_ARCH)))
CUDA_OBJECTS := $(patsubst kernels/%.cu,$(CUDA_B)/%.o,$(wildcard kernels/*.cu))
# The host's compiler links, so that a sanitized variant gets its run-time library.
LIBS      += -L$(CUDA_HOME)/lib64 -lcudart_static -ldl -lrt
CFLAGS    += -isystem $(CUDA_HOME)/include
else
NOT_BUILT := $(filter-out src/backend/cuda_absent.c,$(CUDA_C))
endif

SOURCES := $(filter-out $(NOT_BUILT) src/bundle/%,$(wildcard src/*.c src/*/*.c tiling/*.c kernels/*.c))
OBJECTS := $(SOURCES:%.c=$(B)/%.o)
OUTSIDE := $(patsubst %,$(B)/src/%.o,batch console report) # of the program, beside main
PARTS   := $(filter-out $(B)/src/main.o $(OUTSIDE),$(OBJECTS))
LIBRARY := $(B)/libmural.a
PROGRAM := $(B)/mural

UNIT    := $(patsubst %.c,$(B)/%,$(wildcard tests/unit/test_*.c))
KERNEL  := $(patsubst %.c,$(B)/%,$(filter-out %_cuda.c,$(wildcard tests/kernels/test_*.c)))
UNIT    := $(filter-out %_cuda,$(UNIT))
PARITY  := $(patsubst %.c,$(B)/%,$(wildcard tests/parity/parity_*.c))
FAULT   := $(patsubst %.c,$(B)/%,$(wildcard tests/fault/fault_*.c))
FUZZ    := $(patsubst %.c,$(B)/%,$(wildcard tests/fuzz/fuzz_*.c))
ifneq ($(NVCC),)
CUDA_CHECKS := $(patsubst %.c,$(B)/%,$(filter-out $(if $(CUDNN),,%/test_graph_cuda.c), \
                   $(wildcard tests/kernels/test_*_cuda.c tests/unit/test_*_cuda.c)))
endif
BENCH   := $(B)/tests/bench/bench_memory $(B)/tests/bench/bench_jobs
# What the engine's memory is measured against.
YARDS   := $(B)/tests/bench/segment.o $(B)/tests/bench/solve.o
CHECKS  := $(UNIT) $(KERNEL) $(PARITY) $(FAULT) $(CUDA_CHECKS) $(BENCH)

# Goals that promise to do everything themselves install what is missing first.
ifneq ($(filter demo test quick setup bundle,$(MAKECMDGOALS)),)
SETUP := setup
endif

.PHONY: all help setup demo test quick unit checks lint soak fuzz clean bundle kit test-gpu poster-gpu bench-gpu
.DELETE_ON_ERROR:
.PRECIOUS: $(B)/%.o

all: $(PROGRAM) ## build the program for this machine (build/release/mural)
	@echo "built $(PROGRAM): CPU$(if $(NVCC), and CUDA ($(NVCC)$(if $(CUDNN),, without cuDNN)))"

help: ## this list
	@echo "mural: posters of any size with FLUX.1, tile by tile"; echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | \
	    while IFS='|' read -r name words; do printf '  make %-11s %s\n' "$$name" "$$words"; done
	@echo; echo "  SAN=address or SAN=thread builds that variant under build/"

setup: ## install the Debian or Ubuntu packages that are missing (sudo when not root)
	@if ! command -v dpkg-query >/dev/null; then \
	    echo "no Debian packages here; install by other means: $(PACKAGES)"; exit 0; fi; \
	missing=""; for p in $(PACKAGES); do \
	    dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	    echo "installing:$$missing"; as=""; [ "$$(id -u)" = 0 ] || as="sudo"; \
	    $$as apt-get update -qq && \
	    $$as env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

$(OBJECTS): | $(SETUP)

# Inner loops are where wider fused arithmetic pays; noise must be the same to the bit everywhere.
$(B)/kernels/%.o: CFLAGS += -O3 -ffp-contract=fast
$(B)/kernels/noise.o: CFLAGS += -ffp-contract=off
$(B)/tests/%.o: CFLAGS += -Wno-format-truncation -DMURAL_TEST_DATA='"$(CURDIR)/tests"' -DMURAL_PROGRAM='"$(CURDIR)/$(PROGRAM)"' \
    -DMURAL_FAULT_WORKER='"$(CURDIR)/$(B)/tests/fault/worker"'

$(B)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC    $<"
	@$(CC) $(CFLAGS) -c $< -o $@

$(LIBRARY): $(PARTS) $(CUDA_OBJECTS)
	@echo "  AR    $@"
	@rm -f $@ && ar rcs $@ $^

$(PROGRAM): $(B)/src/main.o $(OUTSIDE) $(LIBRARY)
	@echo "  LINK  $@"
	@$(CC) $(LDFLAGS) $^ $(LIBS) -o $@

$(CHECKS): %: %.o $(YARDS) $(LIBRARY)
	@echo "  LINK  $@"
	@$(CC) $(LDFLAGS) $^ -lcmocka $(LIBS) -o $@

# A worker with faults from outside, for the tests of those who use workers.
$(B)/tests/fault/worker: $(B)/tests/fault/worker.o $(LIBRARY)
	@echo "  LINK  $@"
	@$(CC) $(LDFLAGS) $^ $(LIBS) -o $@
$(FAULT): | $(B)/tests/fault/worker

$(FUZZ): %: %.o $(B)/tests/fuzz/driver.o $(LIBRARY)
	@echo "  LINK  $@"
	@$(CC) $(LDFLAGS) $^ $(LIBS) -o $@

NVCCFLAGS := -O3 -std=c++17 --compress-mode=size -I. -Isrc -Xcompiler -Wall,-fno-exceptions,-fno-threadsafe-statics
NVCC_CODE := $(foreach a,$(CUDA_ARCH),-gencode arch=compute_$(a),code=sm_$(a)) \
             $(foreach a,$(lastword $(CUDA_ARCH)),-gencode arch=compute_$(a),code=compute_$(a))
$(CUDA_B)/%_hopper.o: NVCC_CODE := -gencode arch=compute_90a,code=sm_90a
$(CUDA_B)/%.o: kernels/%.cu $(wildcard kernels/*.h kernels/*.cuh)
	@mkdir -p $(@D)
	@echo "  NVCC  $<"
	@$(NVCC) $(NVCCFLAGS) $(NVCC_CODE) -c $< -o $@

# ------------------------------------------------------------------------------------- pictures

DEMO_PROMPT := A majestic mountain landscape at sunset, 8k
# Until the sample model has its weights, the demo paints with a random one: a real poster of noise.
SAMPLE_WEIGHTS := $(wildcard samples/model/transformer/*.safetensors)
demo: $(PROGRAM) ## render the first 8K poster from nothing: build/demo/poster.tif
	@mkdir -p build/demo
ifeq ($(SAMPLE_WEIGHTS),)
	@rm -rf build/demo/model && $(PROGRAM) synth build/demo/model --spec tiny
endif
	$(PROGRAM) render "$(DEMO_PROMPT)" -o build/demo/poster.tif --overwrite \
	    --keep-draft build/demo/draft.png $(if $(SAMPLE_WEIGHTS),,--model build/demo/model --tile 1024 --steps 4)
	@$(PROGRAM) info build/demo/poster.tif

# ---------------------------------------------------------------------------------------- tests

test: $(SETUP) ## everything: lint, unit, kernel, parity, command line, sanitizers, short fuzzing
	@tests/run.sh "$(MAKE)"

quick: $(SETUP) ## lint, unit and kernel checks only
	@tests/run.sh "$(MAKE)" quick

# ---------------------------------------------------------------------------------- to other machines

# Shared libraries that every Linux has in its own version, or that only a driver's package may give.
KEPT_OUT := linux-vdso|ld-linux|/libc\.so|/libm\.so|libpthread|libdl\.|librt\.|libcuda
carried = ldd $(1) | awk '$$2 == "=>" {print $$3}' | grep -vE '$(KEPT_OUT)'
BUNDLE  := build/bundle
KIT     := build/kit
KIT_OF  := $(CUDA_CHECKS) $(B)/tests/unit/test_ops $(PARITY) $(B)/tests/bench/bench_gpu $(BENCH) \
           $(B)/tests/gpu/hog $(B)/tests/gpu/psnr

# oneDNN is larger than all the rest, so it goes packed into a small library of its name; the licence
# of each library that is carried is found by the package that it is from.
ONEDNN  = ldd $(PROGRAM) | awk '$$1 ~ /^libdnnl\./ {print $$$(1)}'
$(B)/bundle/onednn.zst: $(PROGRAM)
	@mkdir -p $(@D)
	@echo "  PACK  $@"
	@zstd -q -f -9 "$$($(call ONEDNN,3))" -o $@ && touch $@
$(B)/bundle/onednn.so: src/bundle/unpack.c $(B)/bundle/onednn.zst
	@echo "  LINK  $@"
	@$(CC) $(CFLAGS) -fPIC -fvisibility=hidden -shared -Wl,-soname,"$$($(call ONEDNN,1))" \
	    "-DUNPACK_CALLS=$$(nm -D -u $(PROGRAM) | awk '$$2 ~ /^dnnl_/ {printf "X(%s) ", $$2}')" \
	    '-DUNPACK_FILE="$(B)/bundle/onednn.zst"' $< -lzstd -o $@

.PHONY: $(BUNDLE)
$(BUNDLE): $(PROGRAM) $(B)/bundle/onednn.so
	@rm -rf $(BUNDLE) && mkdir -p $(BUNDLE)/lib $(BUNDLE)/licences $(BUNDLE)/samples
	@cp $(PROGRAM) $(BUNDLE)/mural
	@$(call carried,$(PROGRAM)) | xargs -I{} cp -L {} $(BUNDLE)/lib/
	@cp $(B)/bundle/onednn.so "$(BUNDLE)/lib/$$($(call ONEDNN,1))"
	@strip $(BUNDLE)/mural $(BUNDLE)/lib/*
	@for lib in $$($(call carried,$(PROGRAM))); do \
	    from=$$(dpkg -S "*/x86_64-linux-gnu/$$(basename "$$(readlink -f $$lib)")" 2>/dev/null | cut -d: -f1 | head -1); \
	    [ -z "$$from" ] || cp /usr/share/doc/$$from/copyright $(BUNDLE)/licences/$$from; done
	@cp LICENSE README.md $(BUNDLE)/ && cp samples/*.yaml $(BUNDLE)/samples/
	@tar -C samples --exclude=work --exclude='*.py' --exclude='*.cu' --exclude=__pycache__ -cf - model | tar -C $(BUNDLE) -xf -
	@tests/bundle/run.sh $(BUNDLE) $(PROGRAM)

bundle: $(BUNDLE) ## a folder that runs on another Linux: build/bundle, packed build/bundle.tar.xz
	@tar -C build -cf - bundle | xz -T0 -0 >build/bundle.tar.xz # weights hardly pack: 1 % above -3
	@du -sb $(BUNDLE) build/bundle.tar.xz | awk '{printf "built %s: %.0f MB\n", $$2, $$1 / 1e6}'

# The mains of many programs get names of their own, and one more main calls them.
$(B)/kit/%.o: | $(SETUP)
	@mkdir -p $(@D)
	@objcopy --redefine-sym main=$*_main $< $@
$(foreach p,$(KIT_OF),$(eval $(B)/kit/$(notdir $(p)).o: $(p).o))
$(B)/kit/mural.o: $(B)/src/main.o
$(B)/kit/kit: tests/gpu/kit.c $(KIT_OF:%=%.o) $(foreach p,$(KIT_OF),$(B)/kit/$(notdir $(p)).o) $(B)/kit/mural.o $(OUTSIDE) $(YARDS) $(LIBRARY)
	@echo "  LINK  $@"
	@$(CC) $(CFLAGS) '-DKIT_PROGRAMS=X(mural) $(foreach p,$(KIT_OF),X($(notdir $(p))))' $(LDFLAGS) \
	    $(filter %.c,$^) $(filter $(B)/kit/%.o,$^) $(OUTSIDE) $(YARDS) $(LIBRARY) -lcmocka $(LIBS) -o $@

kit: $(B)/kit/kit ## the tests of a GPU as a folder and an archive: build/kit, build/kit.tar.xz
	@rm -rf $(KIT) && mkdir -p $(KIT)/lib $(KIT)/golden
	@cp $< $(KIT)/kit && strip $(KIT)/kit && cp tests/gpu/run.sh tests/gpu/poster.sh $(KIT)/
	@$(call carried,$<) | xargs -I{} cp -L {} $(KIT)/lib/
	@cp -r tests/golden/engine tests/golden/models $(KIT)/golden/
	@mkdir $(KIT)/bench && cp -r tests/bench/exchange.sh tests/bench/*.py tests/bench/traces $(KIT)/bench/
	@tar -C build -cf - kit | xz -T0 -3 >build/kit.tar.xz
	@du -m build/kit.tar.xz | awk '{print "built build/kit.tar.xz: " $$1 " MB; there: tar xf kit.tar.xz && kit/run.sh"}'

test-gpu: kit ## what only a GPU can show: kernels, parity, the same bytes twice, compute-sanitizer
	@$(KIT)/run.sh

poster-gpu: kit ## whole posters of the sample model on a GPU, undisturbed and in bad luck
	@$(KIT)/poster.sh

bench-gpu: kit ## FLUX.1-dev's parts at their real shapes on the GPU, as CSV
	@XDG_CACHE_HOME=$(CURDIR)/build/cache $(KIT)/kit bench_gpu

unit: $(UNIT) $(KERNEL)

checks: $(CHECKS) $(PROGRAM)

lint: ## layers, file and function lengths, names
	@tests/lint/layers.sh
	@tests/lint/tidy.sh

soak: $(PROGRAM) ## 200 posters killed at random moments and resumed (SOAK_RUNS=N for another number)
	@MURAL=$(PROGRAM) tests/fault/soak.sh $(SOAK_RUNS)

fuzz: $(FUZZ) ## build every fuzz target (run them with: make test, or by hand)

clean: ## remove build/
	rm -rf build

-include $(OBJECTS:.o=.d) $(YARDS:.o=.d)
-include $(CHECKS:=.d) $(FUZZ:=.d) $(B)/tests/fault/worker.d $(B)/tests/bench/bench_gpu.d
