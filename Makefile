# Every target sets up what it needs on a machine with Go, Node, npm and make, and does it once.
#
#   make demo        a NestJS service behind sallyport, walked through in the terminal (ONCE=1: check and end)
#   make test        everything that must hold
#   make lab         a vulnerable service in a real container, attacked bare and guarded (FORMAT=json: one object on stdout)
#   make help        the rest

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory

GO      ?= go
BIN     := build/sallyport
STAMPS  := build/stamps
SOURCES := $(shell find . \( -name node_modules -o -path ./npm -o -path ./examples/nestjs -o -path ./e2e \) -prune -o -name '*.go' -not -name '*_test.go' -print) go.mod go.sum \
           $(shell find safedial internal -type f -not -name '*.go' -not -path '*/testdata/*' 2>/dev/null)
FUZZTIME ?= 30s
BENCH    ?= .
FORMAT   ?= text
BENCHFLAGS ?=

say = @printf '\033[1m== %s\033[0m\n' "$(1)"

.PHONY: help build demo test arm64 lab lab-ready bench bench-ready lint fuzz unit scripts npm-build npm-test walk clean tools-check

help: ## Show this
	@echo "sallyport: a bearer token should open a route, never the host"; echo
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-8s %s\n", $$1, $$2}'
	@echo; echo "  ONCE=1 with demo: check every step and end.  FORMAT=json with lab and bench.  FUZZTIME=$(FUZZTIME) with fuzz.  BENCH=REGEXP, compare or gateways with bench."

build: $(BIN) ## Build build/sallyport, one static binary

$(BIN): $(SOURCES)
	$(call say,building $(BIN))
	@mkdir -p build
	@CGO_ENABLED=0 $(GO) build -buildvcs=auto -trimpath -ldflags='-s -w' -o $(BIN) ./cmd/sallyport

demo: build $(STAMPS)/examples-nestjs $(STAMPS)/examples-nestjs-build ## The main job: a real NestJS service behind sallyport run, walked through
	$(call say,the walk)
	@$(GO) build -o build/demo ./examples/demo
	@exec build/demo $(if $(ONCE),-once) -sallyport $(BIN) -service examples/nestjs

test: lint arm64 unit npm-test walk ## Everything: format, vet, staticcheck, vulnerabilities, go test -race, scripts, npm tests, end to end
	$(call say,all of it passed)

# Whatever is built before goes to standard error: standard output is the lab's own.
lab: ## The escape lab: a vulnerable service in a real container, attacked bare and guarded
	@$(MAKE) lab-ready >&2
	@scripts/with-engine build/lab -format $(FORMAT)

lab-ready: $(STAMPS)/packages $(STAMPS)/e2e-lab-app-build
	$(call say,building the lab)
	@mkdir -p build
	@$(GO) build -o build/lab ./e2e/lab

walk: ## make demo ONCE=1
	@$(MAKE) demo ONCE=1

lint: ## gofmt, vet, staticcheck, arm64, govulncheck where its data can be reached
	$(call say,gofmt)
	@bad="$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go' | xargs -r ls -d 2>/dev/null))"; if [ -n "$$bad" ]; then echo "not formatted:"; echo "$$bad"; exit 1; fi
	$(call say,go vet)
	@$(GO) vet ./...
	@GOARCH=arm64 CGO_ENABLED=0 $(GO) vet ./cmd/... ./internal/sandbox/...
	$(call say,staticcheck)
	@$(GO) tool staticcheck ./...
	$(call say,govulncheck)
	@scripts/vulncheck

arm64: $(STAMPS)/packages ## The filter's table for arm64, interpreted under an emulator
	$(call say,the filter for arm64)
	@scripts/arm64

unit: build $(STAMPS)/packages $(STAMPS)/examples-nestjs $(STAMPS)/examples-nestjs-build $(STAMPS)/e2e-authserver $(STAMPS)/e2e-backends $(STAMPS)/npm-preload $(STAMPS)/e2e-lab-app-build ## go test -race of everything, the real services among it
	$(call say,go test -race ./... with the end-to-end tests)
	@scripts/with-engine scripts/unit

npm-build: $(STAMPS)/npm-build ## Build npm/, the package for NestJS services

npm-test: build $(STAMPS)/npm $(STAMPS)/npm-nest-10 $(STAMPS)/npm-nest-11 $(STAMPS)/npm-nodes $(STAMPS)/npm-preload $(STAMPS)/examples-nestjs $(STAMPS)/examples-nestjs-build ## The NestJS package's tests, on NestJS 10, 11, 12 and Node 20, 22, 24, and those of the Node preload and of the example service
	$(call say,npm test in npm)
	@cd npm && npm test
	$(call say,npm test in examples/nestjs)
	@cd examples/nestjs && npm test
	$(call say,npm test in npm/preload)
	@cd npm/preload && npm test

# Whatever is built before goes to standard error, and with FORMAT=json all but the one object.
bench: ## The benchmarks beside the code, then what stands in doc/performance.md and doc/benchmarks.md: BENCH=REGEXP picks of the first, BENCH=compare those two, BENCH=gateways the last
	@$(MAKE) bench-ready >&2
ifeq ($(filter compare gateways,$(BENCH)),)
	@$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem $$($(GO) list ./... | grep -v /e2e) $(if $(filter json,$(FORMAT)),>&2)
endif
ifneq ($(filter . compare gateways,$(BENCH)),)
	@build/bench -sallyport $(BIN) -format $(FORMAT) -page doc/benchmarks.md $(if $(filter gateways,$(BENCH)),-only gateways) $(BENCHFLAGS)
endif

bench-ready: build $(if $(filter . compare gateways,$(BENCH)),$(STAMPS)/peers) $(if $(filter . compare,$(BENCH)),$(STAMPS)/examples-nestjs-build)
	@$(GO) build -o build/bench ./bench

$(STAMPS)/peers: scripts/peers
	$(call say,the proxies and gateways to compare with)
	@mkdir -p $(STAMPS)
	@scripts/peers
	@touch $@

fuzz: ## Every fuzz target for FUZZTIME
	@scripts/fuzz $(FUZZTIME)

$(STAMPS)/packages: scripts/packages
	$(call say,what the tests need beside Go and Node)
	@mkdir -p $(STAMPS)
	@scripts/packages
	@touch $@

$(STAMPS)/npm: DIR := npm
$(STAMPS)/npm-nest-10: DIR := npm/test/stacks/nest-10
$(STAMPS)/npm-nest-11: DIR := npm/test/stacks/nest-11
$(STAMPS)/npm-nodes: DIR := npm/test/nodes
$(STAMPS)/examples-nestjs: DIR := examples/nestjs
$(STAMPS)/e2e-authserver: DIR := e2e/authserver
$(STAMPS)/e2e-backends: DIR := e2e/backends
$(STAMPS)/e2e-lab-app: DIR := e2e/lab/app
$(STAMPS)/npm-preload: DIR := npm/preload
$(STAMPS)/npm: npm/package-lock.json
$(STAMPS)/npm-nest-10: npm/test/stacks/nest-10/package-lock.json
$(STAMPS)/npm-nest-11: npm/test/stacks/nest-11/package-lock.json
$(STAMPS)/npm-nodes: npm/test/nodes/package-lock.json
$(STAMPS)/examples-nestjs: examples/nestjs/package-lock.json
$(STAMPS)/e2e-authserver: e2e/authserver/package-lock.json
$(STAMPS)/e2e-backends: e2e/backends/package-lock.json
$(STAMPS)/e2e-lab-app: e2e/lab/app/package-lock.json
$(STAMPS)/npm-preload: npm/preload/package-lock.json
$(STAMPS)/npm $(STAMPS)/npm-nest-10 $(STAMPS)/npm-nest-11 $(STAMPS)/npm-nodes $(STAMPS)/examples-nestjs $(STAMPS)/e2e-authserver $(STAMPS)/e2e-backends $(STAMPS)/e2e-lab-app $(STAMPS)/npm-preload:
	$(call say,npm ci in $(DIR))
	@mkdir -p $(STAMPS)
	@cd $(DIR) && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

$(STAMPS)/npm-build: $(STAMPS)/npm $(wildcard npm/src/*.ts) npm/tsconfig.json
	$(call say,building the package for NestJS)
	@cd npm && npm run --silent build
	@touch $@

$(STAMPS)/examples-nestjs-build: $(STAMPS)/examples-nestjs $(shell find examples/nestjs/src -name '*.ts' 2>/dev/null) $(wildcard examples/nestjs/tsconfig*.json)
	$(call say,building the example service)
	@cd examples/nestjs && npm run --silent build
	@touch $@

$(STAMPS)/e2e-lab-app-build: $(STAMPS)/e2e-lab-app $(wildcard e2e/lab/app/src/*.ts) e2e/lab/app/tsconfig.json
	$(call say,building the vulnerable service of the escape lab)
	@cd e2e/lab/app && npm run --silent build
	@touch $@

clean: ## Remove what was built and installed
	rm -rf build npm/node_modules npm/dist npm/build npm/preload/node_modules npm/test/nodes/node_modules npm/test/stacks/*/node_modules npm/test/stacks/*/build examples/nestjs/node_modules examples/nestjs/dist examples/nestjs/build examples/nestjs/var e2e/authserver/node_modules e2e/backends/node_modules e2e/lab/app/node_modules e2e/lab/app/dist
