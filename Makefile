# Targets that people and CI call. Everything that a person may want without
# make is a plain command in the recipe; docs/testing.md explains the tests.

GO      ?= go
TOOLS   := $(GO) tool -modfile=packaging/tools/go.mod
ARCH    ?= $(shell $(GO) env GOARCH)
FUZZTIME ?= 10s

# Packages with concurrency of their own: what the race detector is for.
RACE := ./dicomnet/... ./pipeline ./pipeline/spool/... ./kernels/... ./daemon ./daemon/web ./cmd/...

.DEFAULT_GOAL := build
.PHONY: build build-cuda gpu-kit emulator test test-emulated emulated-forward emulated-reversed emulated-programs test-sanitized race interop kernels fuzz bench bench-network bench-receive bench-daemon package lint train-default train-radiograph ablation ablation-clean calibrate quality clean

build: ## bin/denoised: static, CPU
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/denoised ./cmd/denoised

# gorgonia.org/cu must be compiled with our header, also where NVIDIA's is installed.
CUDA := CGO_ENABLED=1 CGO_CFLAGS="-O2 -g -I$(CURDIR)/kernels/cuda/driver/include/v1"

build-cuda: ## bin/denoised-cuda: as build, and uses a GPU where there is one (needs a C compiler)
	$(CUDA) $(GO) build -trimpath -tags cuda -o $(or $(OUT),bin/denoised-cuda) ./cmd/denoised

# For a machine with a card and without Go. The tests look for the real driver there.
gpu-kit: ## dist/gpu-kit: what only a card can show, see docs/cuda.md
	rm -rf dist/gpu-kit
	mkdir -p dist/gpu-kit
	$(MAKE) build-cuda OUT=dist/gpu-kit/denoised-cuda
	$(CUDA) $(GO) test -c -tags cuda,emulated -o dist/gpu-kit/cuda.test ./kernels/cuda
	$(CUDA) $(GO) test -c -tags cuda,emulated -o dist/gpu-kit/models.test ./models
	cp -r kernels/cuda/hardware/* models/testdata dist/gpu-kit
	cp models/default/weights.safetensors dist/gpu-kit

EMULATOR := bin/libcudaemu.so
emulator: $(EMULATOR) ## a driver library that runs the CUDA kernels on the CPU, for tests (needs g++)
$(EMULATOR) $(EMULATOR:.so=-asan.so): $(wildcard $(addprefix kernels/cuda/,kernel/*.cu kernel/*.h kernel/emu/* driver/include/*/cuda.h)) Makefile
	@mkdir -p bin
	$(CXX) -O2 -g -std=c++20 -shared -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra \
		$(if $(filter x86_64,$(shell uname -m)),-march=x86-64-v3) $(if $(findstring asan,$@),-fsanitize=address) \
		-o $@ kernels/cuda/kernel/emu/driver.cc

EMULATED := $(CUDA) DENOISED_CUDA_LIB=$(CURDIR)/$(EMULATOR)

test: ## everything that runs with Go alone; the rest skips and says why
	$(GO) test ./...

# Threads, blocks and streams in either order: what is right only in one of them lacks a barrier or
# a wait. (Long tests of one goroutine run without the race detector.) Then once without any driver,
# and what is built on it. An emulated device keeps one core busy: make -j helps.
LONG := TrainGraphs|TrainSizes|^TestTrain$$/^[^s]|^TestChannels
test-emulated: emulated-forward emulated-reversed emulated-programs ## the CUDA backend without a GPU (needs a C compiler)

emulated-forward: emulator
	$(EMULATED) DENOISED_EMU=order=forward $(GO) test -race -count=1 -timeout 15m -skip '$(LONG)' -tags cuda,emulated ./kernels/cuda/...

emulated-reversed: emulator
	$(EMULATED) DENOISED_EMU=order=reversed $(GO) test -count=1 -timeout 15m -tags cuda,emulated ./kernels/cuda/...

emulated-programs: emulator
	$(EMULATED) DENOISED_EMU=order=forward $(GO) test -count=1 -run '$(LONG)' -tags cuda,emulated ./kernels/cuda
	$(CUDA) $(GO) test -count=1 -tags cuda ./kernels/cuda/driver
	$(EMULATED) $(GO) test -count=1 -tags cuda,emulated -run 'GPU|CUDA' ./cmd/denoised ./models ./models/train

# Finds what kernels read or write outside of memory, and says in which line. The sanitizer must be
# loaded before anything else. Then what cgo can check of the pointers that C is given.
test-sanitized: $(EMULATOR:.so=-asan.so) emulator ## as test-emulated, with the address sanitizer; RUN names tests
	$(CUDA) DENOISED_CUDA_LIB=$(CURDIR)/$< ASAN_OPTIONS=detect_leaks=0 $(GO) test -count=1 -timeout 15m -tags cuda,emulated \
		-exec "env LD_PRELOAD=$(shell $(CXX) -print-file-name=libasan.so)" $(if $(RUN),-run '$(RUN)') ./kernels/cuda/...
	$(if $(RUN),,$(EMULATED) GOEXPERIMENT=cgocheck2 $(GO) test -count=1 -tags cuda,emulated ./kernels/cuda/driver)

# The crash tests kill children of their own, whose races nobody would hear of; others are long
# computations. They run in "test".
race: ## the race detector over what is concurrent (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -p 3 -timeout 10m -skip '^Test(Killed|PowerCuts|MemoryIsFlat|DiskFaults|RealObjects|Rebuild|FailuresPass|Remarks|DerivedFile|Eval$$|FaintObjects|DarkTissue|Denoise$$|DenoiseAdapt|AMX$$|AssemblyAgrees|Train|Script|ModelInstall|ModelVerify)|^TestGraphs/./training/[^s]|^TestBackend/go$$' $(RACE)

interop: ## against DCMTK, Orthanc and dciodvfy; a missing one fails
	DENOISED_REQUIRE=peers$(if $(wildcard ../shared/data),$(comma)data) $(GO) test -count=1 -timeout 15m ./daemon/interop

kernels: ## regenerate assembly and PTX (needs clang-19); fail if they differ from what is committed
	$(GO) generate ./kernels/...
	git diff --exit-code -- kernels
	@test -z "$$(git ls-files --others --exclude-standard kernels)" || \
		{ echo "generated but not committed:"; git ls-files --others --exclude-standard kernels; exit 1; }

fuzz: ## every fuzz target for FUZZTIME; FUZZ names packages
	GO="$(GO)" packaging/fuzz.sh $(FUZZTIME) $(FUZZ)

bench: ## all benchmarks, in the form that benchstat reads
	$(GO) test -run '^$$' -bench . -benchmem -count 6 ./...

# A registry is asked for onnxruntime-node once; PyTorch is that of /usr/bin/python3.
bench-network: ## docs/measured/network.md: networks on one core against ONNX Runtime and PyTorch (needs node, npm, torch)
	npm install --prefix dist/bench --ignore-scripts --no-audit --no-fund --silent onnxruntime-node@1
	@mkdir -p docs/measured
	$(GO) run ./kernels/cpu/bench -modules dist/bench/node_modules -out docs/measured/network.md

bench-receive: build ## images per second against other receivers in the same run
	daemon/interop/bench_receive.sh

# On a machine with more cores: taskset -c 0,1 make bench-daemon
bench-daemon: ## docs/measured/daemon.md: from the last slice of a series to its last derived one in the archive
	DENOISED_DAEMON=$(CURDIR)/docs/measured/daemon.md \
		$(GO) test -run '^$$' -bench LastSlice -benchtime $(or $(ROUNDS),7)x -timeout 30m ./daemon/interop

package: ## dist/: .deb and .rpm for ARCH, same bytes for the same commit
	GO="$(GO)" packaging/build.sh $(ARCH) dist

# With CUDA, which leaves out some lines of files for builds without it.
lint: ## gofmt, go vet, staticcheck (needs a C compiler)
	@out=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
		test -z "$$out" || { echo "gofmt these files:"; echo "$$out"; exit 1; }
	$(CUDA) $(GO) vet -tags cuda,emulated ./...
	$(CUDA) $(TOOLS) staticcheck -tags cuda,emulated ./...

# The recipe of the embedded networks: some hours on two cores, resumable. The Philips
# volumes are of the volunteer whose repetitions are scored; settings are chosen on the others.
TRAINED := $(or $(OUT),dist/train-default)
RECIPE  := bin/denoised train --data $(or $(DATA),../shared/data/mri) --preset default --seed 1 --resume \
	--exclude "philips_mprage,philips_dwi,patient20*,brain_gd_clinical"
finished = grep -qs '"$(2)"' $(1)/run.json
train-default: build ## train the embedded model's recipe on DATA into OUT
	$(call finished,$(TRAINED)/first,all) || $(RECIPE) --out $(TRAINED)/first
	$(call finished,$(TRAINED),student) || $(RECIPE) --out $(TRAINED) --from $(TRAINED)/first/model --stage student --distil
	$(call finished,$(TRAINED),diffusion) || $(RECIPE) --out $(TRAINED) --from $(TRAINED)/first/model --stage diffusion

# The recipe of the embedded model of radiographs: it goes on from the embedded one of MR. The radiographs
# that are left out are those of the table.
XRAY_HELD := 4d98e1de_pa.png,a8ac1969_pa.png,27f5a41d_pa.png,19073f37_ap.png,b343e657_ap.png,cf35d0c4_ap.png
train-radiograph: OUT ?= dist/train-radiograph
train-radiograph: build ## train the embedded radiograph model's recipe on DATA into OUT
	for stage in meter student; do test -e $(OUT)/$$stage.safetensors || bin/denoised train --out $(OUT) \
		--data $(or $(DATA),../shared/data/xray/hannover_png) --exclude "$(XRAY_HELD)" --kind radiograph --from default \
		--preset tune --seed 1 --name denoised-radiograph --stage $$stage --resume || exit 1; done

ablation: ## what each part of the method is worth: trainings of some hours, resumable, networks in OUT
	DENOISED_ABLATION=$(abspath $(or $(OUT),dist/ablation)) $(GO) test ./models/train -run Ablation -v -count=1 -timeout 0

ablation-clean: ## docs/measured/clean.md: the student from noisy images beside that from clean ones; half an hour of one core, networks in OUT
	DENOISED_ABLATION=$(abspath $(or $(OUT),dist/ablation)) DENOISED_CLEAN=$(CURDIR)/docs/measured/clean.md \
		$(GO) test ./models/train -run CleanTargets -v -count=1 -timeout 0

calibrate: ## models/uncertainty_shares.go: what high states for its error, for the embedded networks; some minutes
	DENOISED_CALIBRATE=$(CURDIR)/models/uncertainty_shares.go $(GO) test ./models -run '^TestCalibrate$$' -v -count=1 -timeout 0

# Every section is a file, so that what was cut short goes on where it stopped; newer networks make
# all of them anew. One core, for it may run beside a training.
QUALITY := $(addprefix dist/quality/,mri.md repetitions.md pairs.md radiographs.md)
IMAGES  := $(or $(DATA),../shared/data)
dist/quality/mri.md: FLAGS = --data $(IMAGES)/mri/philips_mprage --quality fast,high
dist/quality/repetitions.md: FLAGS = $(foreach f,$(wildcard $(addprefix $(IMAGES)/repeats/,*.nii.gz */*.nii.gz)),--repeats $f)
dist/quality/pairs.md: FLAGS = $(foreach d,$(wildcard $(IMAGES)/repeats/phantom_pairs/*),--pair $d/acq1.dcm$(comma)$d/acq2.dcm)
dist/quality/radiographs.md: FLAGS = --data $(IMAGES)/xray/hannover_png --only "$(XRAY_HELD)" --kind radiograph --shrink 2 --compare default

quality: $(QUALITY) ## docs/measured/quality.md: the embedded models on the images in DATA, SLICES of each volume (3)
	@mkdir -p docs/measured
	cat docs/measured/quality.head $(QUALITY) > docs/measured/quality.md

$(QUALITY): $(wildcard models/default/*.safetensors models/radiograph/*.safetensors) | build
	@mkdir -p $(@D)
	GOMAXPROCS=1 nice bin/denoised eval --markdown --slices $(or $(SLICES),3) $(FLAGS) > $@.part
	mv $@.part $@

clean:
	rm -rf bin dist

comma := ,
