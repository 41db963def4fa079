# build.mk: libminisgl.so, the CUDA implementation of cuda/include/minisgl.h. Included by the Makefile where nvcc is found.
# CUDA_ARCHS are compute capabilities; of them 90a alone has FlashInfer's Hopper kernels.

CUDA_ARCHS ?= 80 89 90a
FLASHINFER_WHEEL := flashinfer-python==0.7.2.post1
FLASHINFER := .downloads/flashinfer-0.7.2.post1
CURAND_WHEEL := nvidia-curand==10.4.5.25
CURAND := .downloads/nvidia-curand-10.4.5.25
FLASHINFER_INCLUDES := $(addprefix -I$(FLASHINFER)/flashinfer/data/,cccl/libcudacxx/include cccl/cub cccl/thrust include \
	cutlass/include cutlass/tools/util/include spdlog/include) -I$(CURAND)/nvidia/cu13/include

CUDA_BUILD := $(BUILD)/cuda
# What changes the object files besides their sources: one folder an architecture list.
CUDA_OBJECT_DIR := $(CUDA_BUILD)/$(subst $(eval ) ,-,$(strip $(CUDA_ARCHS)))
CUDA_FLAGS := -std=c++17 -O3 -DNDEBUG -Icuda/include -Xcompiler -fPIC,-Wall -Xfatbin -compress-all \
	-DMINISGL_CUDA_ARCHS='"$(CUDA_ARCHS)"' --threads 1
comma := ,
# The newest plain architecture is also kept as PTX, for GPUs that came later.
CUDA_PTX_ARCH := $(lastword $(filter-out %a,$(CUDA_ARCHS)))
cuda_target = -gencode arch=compute_$(1),code=sm_$(1)
CUDA_TARGETS := $(foreach arch,$(CUDA_ARCHS),$(call cuda_target,$(arch))) \
	$(if $(CUDA_PTX_ARCH),-gencode arch=compute_$(CUDA_PTX_ARCH)$(comma)code=compute_$(CUDA_PTX_ARCH))
FLASHINFER_FLAGS := $(FLASHINFER_INCLUDES) -use_fast_math --expt-relaxed-constexpr -static-global-template-stub=false \
	-diag-suppress 177,549,550,2417,3357,20012 -Xcompiler -Wno-unused,-Wno-sign-compare,-Wno-parentheses

CUDA_FLASHINFER := cuda/kernels/attention_fa2.cu cuda/kernels/attention_sm90.cu
CUDA_PLAIN := $(filter-out $(CUDA_FLASHINFER),$(wildcard cuda/kernels/*.cu))
CUDA_VARIANTS := $(foreach element,bf16 f16,$(foreach dim,64 128 256,$(element)-$(dim)))
CUDA_OBJECTS := $(CUDA_PLAIN:cuda/kernels/%.cu=$(CUDA_OBJECT_DIR)/%.o) \
	$(CUDA_VARIANTS:%=$(CUDA_OBJECT_DIR)/attention_fa2.%.o) $(CUDA_VARIANTS:%=$(CUDA_OBJECT_DIR)/attention_sm90.%.o)

.PHONY: cuda-library
cuda-library: $(BUILD)/libminisgl.so ## Builds the CUDA library (needs nvcc; CUDA_ARCHS="90a" for Hopper alone)

$(BUILD)/libminisgl.so: $(CUDA_OBJECTS) cuda/kernels/exports.map
	$(NVCC) -shared -cudart static -Xlinker -z,defs,-z,now,--version-script=cuda/kernels/exports.map \
		-Xcompiler -static-libstdc++,-static-libgcc $(CUDA_OBJECTS) -o $@ -ldl -lpthread
	@rm -f src/native/libraries.generated.ts # the next `make` embeds it

$(CUDA_OBJECT_DIR)/%.o: cuda/kernels/%.cu
	@mkdir -p $(@D)
	$(NVCC) $(CUDA_FLAGS) $(CUDA_TARGETS) -MD -MP -MF $(@:.o=.d) -c $< -o $@

$(FLASHINFER)/.unpacked:
	@mkdir -p .downloads
	python3 -m pip download --quiet --no-deps --only-binary=:all: --dest .downloads $(FLASHINFER_WHEEL) $(CURAND_WHEEL)
	python3 -m zipfile -e .downloads/flashinfer_python-$(lastword $(subst ==, ,$(FLASHINFER_WHEEL)))-*.whl $(FLASHINFER)
	python3 -m zipfile -e .downloads/nvidia_curand-$(lastword $(subst ==, ,$(CURAND_WHEEL)))-*.whl $(CURAND)
	@touch $@

define flashinfer_rules
$(CUDA_OBJECT_DIR)/attention_fa2.$(1)-$(2).o: cuda/kernels/attention_fa2.cu | $(FLASHINFER)/.unpacked
	@mkdir -p $$(@D)
	$(NVCC) $(CUDA_FLAGS) $(FLASHINFER_FLAGS) $(CUDA_TARGETS) -DMINISGL_ELEMENT=$(1) -DMINISGL_HEAD_DIM=$(2) \
		-MD -MP -MF $$(@:.o=.d) -c $$< -o $$@

$(CUDA_OBJECT_DIR)/attention_sm90.$(1)-$(2).o: cuda/kernels/attention_sm90.cu | $(FLASHINFER)/.unpacked
	@mkdir -p $$(@D)
	$(NVCC) $(CUDA_FLAGS) $(FLASHINFER_FLAGS) -DCUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED $(call cuda_target,90a) \
		-DMINISGL_ELEMENT=$(1) -DMINISGL_HEAD_DIM=$(2) -MD -MP -MF $$(@:.o=.d) -c $$< -o $$@
endef
$(foreach element,bf16 f16,$(foreach dim,64 128 256,$(eval $(call flashinfer_rules,$(element),$(dim)))))

-include $(wildcard $(CUDA_OBJECT_DIR)/*.d)
