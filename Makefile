# Atelier: how to build, try and test it. `make help` lists the targets.

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BIN      := $(CURDIR)/bin
CACHE    := $(CURDIR)/.cache
PROGRAMS := $(notdir $(wildcard cmd/*))
LDFLAGS  := -s -w -X main.version=$(VERSION)

# make test RACE=1 turns the race detector on, as CI does; it needs a C compiler.
RACE     ?=
# make test PKG=./hub/... tests a part.
PKG      ?= ./...
TEST_TIMEOUT ?= 40m
# make soak DURATION=5m rehearses.
DURATION ?= 1h

.DEFAULT_GOAL := help
.PHONY: help build runtime model demo demo-stop test-tools test bench base fpga soak fuzz crash cosign lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build all programs into bin/, static and stripped
	@mkdir -p $(BIN)
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ $(addprefix ./cmd/,$(filter-out atelier-agent,$(PROGRAMS)))
	@# The agent needs no HTTP/2, and stays under 12 MB of memory without it: docs/adr/0061.
	CGO_ENABLED=0 go build -trimpath -tags nethttpomithttp2 -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/atelier-agent

runtime: ## fetch ONNX Runtime's shared library, pinned by hash, into .cache/
	@scripts/fetch-runtime $(CACHE)/onnxruntime

model: ## fetch the published model of the demo, pinned by hash, into .cache/
	@scripts/fetch-model $(CACHE)/models

demo: build runtime model ## the main job: a model from the command line to two devices and back (KEEP=1 leaves it running)
	@KEEP=$(KEEP) go run ./examples/demo

demo-stop: ## end what 'make demo KEEP=1' left running
	@go run ./examples/demo stop

test-tools: ## install what the tests need beside Go: brokers, PostgreSQL, promtool, tritonclient, kserve, mlflow-skinny, toxiproxy, container tools
	@scripts/install-test-tools $(CACHE)
	@fpga/install-tools

test: test-tools build runtime model ## run all tests (RACE=1 with the race detector, PKG=./hub/... a part)
	go vet ./...
	go test $(if $(RACE),-race) -timeout $(TEST_TIMEOUT) $(PKG)

bench: test-tools build runtime model ## run the benchmarks (BENCH=name one of them)
	@case "$(BENCH)" in spine|serving|packages|containers|fpga) ;; *) scripts/fetch-pairs $(CACHE)/pairs ;; esac
	@case "$(BENCH)" in spine|transfer|packages|containers|fpga) ;; *) scripts/install-peers $(CACHE)/peers ;; esac
	@case "$(BENCH)" in ''|packages) scripts/fetch-registry $(CACHE)/peers/docker-registry ;; esac
	@go run ./bench $(BENCH)

base: ## build the root file system that packages can stand on, out of Debian's packages, into bin/ (ARCH=arm64, as root)
	@mkdir -p $(BIN)
	scripts/build-base $(BIN)/base-$(or $(ARCH),$(shell go env GOARCH)).tar $(or $(ARCH),$(shell go env GOARCH))

fpga: ## simulate the overlay for FPGAs, make its bitstreams for iCE40, and compare them with it; into bin/fpga/
	@fpga/install-tools all
	@rm -rf $(CACHE)/fpga $(BIN)/fpga
	fpga/synthesise hx8k $(CACHE)/fpga/hx8k
	fpga/synthesise up5k $(CACHE)/fpga/up5k
	@# Only what behaves as the RTL and the reference do goes on.
	ATELIER_FPGA=full ATELIER_FPGA_BUILD=$(CACHE)/fpga go test -count=1 -timeout 60m -v ./fpga/rtl ./fpga/driver/verilator
	@mkdir -p $(BIN)/fpga
	@for part in hx8k up5k; do for what in bin json; do cp $(CACHE)/fpga/$$part/overlay.$$what $(BIN)/fpga/overlay-$$part.$$what; done; done

soak: test-tools runtime ## a day in an hour: cut links, change versions, and see that nothing grows (DURATION=1h, SEED=n)
	SOAK_DURATION=$(DURATION) SOAK_SEED=$(SEED) SOAK_TABLE=$(CACHE)/soak.md \
		go test -count=1 -v -timeout 24h -run '^TestDayInAnHour$$' ./internal/e2e
	@echo "The tables are in $(CACHE)/soak.md"

fuzz: ## run every fuzz test for a while each (FUZZTIME=30s of CPU time; PKG=./hub/... a part) and print a table
	@scripts/fuzz $(or $(FUZZTIME),30s) $(PKG)

crash: runtime ## cut the power under hub and agent, and kill them, at 200 points each, as root (SEEDS=200; SIDE=hub HOW=cut SEED=7 one again)
	go test ./internal/e2e/crash -v -count 1 -timeout 6h -parallel $(or $(AT_ONCE),4) \
		-args -seeds $(or $(SEEDS),200) -seed $(or $(SEED),0) -side '$(SIDE)' -how '$(HOW)'

# Pinned by version; not among the test tools, since it compiles for half an hour.
COSIGN := v3.1.3
cosign: ## let cosign verify what the hub signs, also with bits flipped (builds cosign, which takes long)
	@test -x $(CACHE)/bin/cosign-$(COSIGN) || { echo "Building cosign $(COSIGN)"; built=$$(mktemp -d) && cd $$built && \
		GOBIN=$$built CGO_ENABLED=0 go install github.com/sigstore/cosign/v3/cmd/cosign@$(COSIGN) && mkdir -p $(CACHE)/bin && mv cosign $(CACHE)/bin/cosign-$(COSIGN) && rmdir $$built; }
	ATELIER_COSIGN=$(CACHE)/bin/cosign-$(COSIGN) go test -count=1 -v -run '^TestCosign$$' ./hub/signing

lint: ## check formatting and style
	@scripts/lint $(CACHE)

clean: ## delete what was built or fetched
	rm -rf $(BIN) $(CACHE) demo-run bench/work
