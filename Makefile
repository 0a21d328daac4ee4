# Targets that people and CI call. Everything that a person may want without
# make is a plain command in the recipe; docs/testing.md explains the tests.

GO      ?= go
TOOLS   := $(GO) tool -modfile=packaging/tools/go.mod
ARCH    ?= $(shell $(GO) env GOARCH)
FUZZTIME ?= 10s

# Packages with concurrency of their own: what the race detector is for.
RACE := ./dicomnet/... ./pipeline/... ./models ./kernels/... ./daemon ./daemon/web ./cmd/...

.DEFAULT_GOAL := build
.PHONY: build test race interop kernels fuzz bench bench-receive package lint train-default clean

build: ## bin/denoised: static, CPU
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/denoised ./cmd/denoised

test: ## everything that runs with Go alone; the rest skips and says why
	$(GO) test ./...

# The crash tests kill children of their own, whose races nobody would hear of; they run in "test".
race: ## the race detector over what is concurrent (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -timeout 10m -skip '^Test(Killed|PowerCuts)' $(RACE)

interop: ## against DCMTK, Orthanc and dciodvfy; a missing one fails
	DENOISED_REQUIRE=peers$(if $(wildcard ../shared/data),$(comma)data) $(GO) test -count=1 -timeout 15m ./daemon/interop

kernels: ## regenerate the assembly; fail if it differs from what is committed
	$(GO) generate ./kernels/...
	git diff --exit-code -- kernels
	@test -z "$$(git ls-files --others --exclude-standard kernels)" || \
		{ echo "generated but not committed:"; git ls-files --others --exclude-standard kernels; exit 1; }

fuzz: ## every fuzz target for FUZZTIME; FUZZ names packages
	GO="$(GO)" packaging/fuzz.sh $(FUZZTIME) $(FUZZ)

bench: ## all benchmarks, in the form that benchstat reads
	$(GO) test -run '^$$' -bench . -benchmem -count 6 ./...

bench-receive: build ## images per second against other receivers in the same run
	daemon/interop/bench_receive.sh

package: ## dist/: .deb and .rpm for ARCH, same bytes for the same commit
	GO="$(GO)" packaging/build.sh $(ARCH) dist

lint: ## gofmt, go vet, staticcheck
	@out=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
		test -z "$$out" || { echo "gofmt these files:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	$(TOOLS) staticcheck ./...

# The recipe of the embedded networks: some hours on two cores, resumable. The Philips
# volumes are of the volunteer whose repetitions are scored.
train-default: build ## train the embedded model's recipe on DATA into OUT
	bin/denoised train --data $(or $(DATA),../shared/data/mri) --out $(or $(OUT),dist/train-default) \
		--exclude philips_mprage,philips_dwi --preset default --seed 1 $(if $(wildcard $(or $(OUT),dist/train-default)),--resume)

clean:
	rm -rf bin dist

comma := ,
