# Type "make" for a list of what there is.
SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

GO      ?= go
VERSION ?= $(shell git describe --tags --dirty --match 'v*' 2>/dev/null || echo v0.0.0-$$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown))
COMMIT  := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
K8S     := $(shell sed -n 's|^[[:space:]]*k8s.io/kubernetes \(v[^ ]*\).*|\1|p' go.mod)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X k8s.io/component-base/version.gitVersion=$(K8S)

# Two at once suits two cores: linking one test program takes up to 2 GB.
PARALLEL ?= 2
# Packages for "make test"; "make test PKGS=./internal/store/..." tests one part.
PKGS     ?= ./...
# Packages that "make ci" also runs under the race detector. The rest would compile all of Kubernetes
# a second time, for which CI has no room; "make race" does it.
RACE_PKGS ?= ./internal/config/... ./internal/durable/... ./internal/lifecycle/... ./internal/pki/... ./internal/telemetry/... \
	./internal/container/crilog/... ./internal/network/dns/... ./internal/network/edge/... ./examples/hello/...

# cgo is off everywhere but in the race detector and in runc, which has a module of its own.
export CGO_ENABLED := 0
# No other flags here: with flags that differ from a plain "go test", all of Kubernetes would be
# compiled twice. Releases add -trimpath.
# Modules beside the main one that have tests; each is tested if it is there.
MODULES := $(patsubst %/go.mod,%,$(wildcard api/go.mod sdk/go.mod examples/tasks/go.mod))

##@ Use
.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: up
up: build kubectl ## Build, start a node here, deploy examples/hello, show its answer
	@scripts/up.sh

.PHONY: down
down: ## Undo "make up": stop the node and its containers, remove its data
	@if [ -x bin/gantry ]; then $$([ "$$(id -u)" = 0 ] || echo sudo -E) bin/gantry down --purge --yes; else echo "down: bin/gantry is not built, so there is nothing of ours to stop"; fi

##@ Build
.PHONY: deps
deps: ## Install what this machine lacks for building and testing (apt; says what)
	@GO=$(GO) scripts/deps.sh

.PHONY: build
build: deps programs ## Build bin/gantry, with the programs inside it
	$(GO) build -ldflags "$(LDFLAGS)" -o bin/gantry ./cmd/gantry

.PHONY: programs
programs: deps ## Build the programs that gantry embeds (runc, the shims, the edge)
	@GO="$(GO)" scripts/build-programs.sh

.PHONY: kubectl
kubectl: bin/kubectl ## Build bin/kubectl, which "gantry kubectl" finds beside bin/gantry
bin/kubectl: go.mod
	$(GO) build -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$(K8S)" -o $@ k8s.io/kubernetes/cmd/kubectl

.PHONY: gen
gen: ## Run the code generators
	$(GO) generate ./...

.PHONY: man
man: build ## Write the manual pages to dist/man (man -M dist/man gantry)
	bin/gantry man dist/man/man1

.PHONY: release
release: ## Build the archives of a release into dist/, with their sums
	@GO="$(GO)" scripts/deps.sh --release
	@GO="$(GO)" VERSION="$(VERSION)" LDFLAGS="$(LDFLAGS)" scripts/release.sh

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin dist .cache internal/programs/bin/linux_*

##@ Check
.PHONY: test
test: deps programs ## Run all tests but test/e2e (PKGS=./internal/store/... for a part)
	@for m in $(MODULES); do (cd $$m && $(GO) test ./...) || exit 1; done
	cd test && $(GO) test ./bench/... ./hosts/... ./upstream/... ./conformance/
	cd tools && $(GO) test ./licences
	$(GO) test -p $(PARALLEL) -timeout 15m $(PKGS)

.PHONY: race
race: deps programs ## Run the tests under the race detector (compiles everything once more)
	CGO_ENABLED=1 $(GO) test -race -p $(PARALLEL) -timeout 30m $(PKGS)

.PHONY: race-ci
race-ci: deps
	CGO_ENABLED=1 $(GO) test -race -p $(PARALLEL) -timeout 15m $$($(GO) list -e -f '{{if not .Error}}{{.ImportPath}}{{end}}' $(RACE_PKGS) 2>/dev/null)

# The linter is built from the module proxy, at the version that tools/go.mod pins.
bin/golangci-lint: tools/go.mod tools/go.sum
	cd tools && $(GO) build -o ../bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint

.PHONY: lint
lint: deps programs bin/golangci-lint ## Check the style: gofmt, go vet and golangci-lint
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "gofmt these files: $$unformatted"; exit 1; fi
	$(GO) vet ./...
	bin/golangci-lint run --concurrency $(PARALLEL) ./...

.PHONY: licences
licences: programs ## Check the licences of all that is linked in (tools/licences has the list)
	@GO="$(GO)" scripts/licences.sh

.PHONY: vulncheck
vulncheck: programs ## Look for known vulnerabilities; skipped, aloud, where vuln.go.dev is not reachable
	@GO="$(GO)" scripts/vulncheck.sh

.PHONY: e2e
e2e: build kubectl ## Test the built program with real containers and kubectl (root)
	cd test && GANTRY_TEST_BIN=$(CURDIR)/bin $(GO) test -count=1 -p 1 -timeout 20m ./e2e/... ./robustness/ ./fleet/

# The same SEED makes the same schedule; FAULTS="leader paused,leader cut off" draws from these only.
.PHONY: robustness
robustness: build kubectl ## Kill, pause and cut off machines under load (root; DURATION=30m SEED=7)
	cd test && GANTRY_TEST_BIN=$(CURDIR)/bin DURATION=$(or $(DURATION),30m) SEED=$(SEED) FAULTS="$(FAULTS)" \
		$(GO) test -count=1 -v -timeout 24h -run TestRobustness ./robustness

.PHONY: languages
languages: deps programs ## Build and start images of Python, npm, pnpm and yarn, with bases of Debian's packages (root, npm)
	test/addonimages.sh .cache/languages python node
	GANTRY_LANGUAGES=$(CURDIR)/.cache/languages $(GO) test -count=1 -timeout 20m -run TestLanguages -v ./internal/platform/build

.PHONY: fixture
fixture: build kubectl ## Record a data dir of this program for upgrade tests (NAME=4-deploy)
	@test -n "$(NAME)" || { echo "fixture: NAME=... says what to call it" >&2; exit 2; }
	@mkdir -p test/fixtures/$(NAME)
	cd test && GANTRY_TEST_BIN=$(CURDIR)/bin GANTRY_E2E_RECORD=$(CURDIR)/test/fixtures/$(NAME) $(GO) test -count=1 -run TestUpgrade ./e2e

# SKEW is the commit of the older version. Its program is
# built once, in a worktree of its own. SKEW_BIN=DIR takes a gantry (and a kubectl) that is there already.
SKEW     ?= 2cdfa7b
SKEW_DIR := $(CURDIR)/.cache/skew/$(SKEW)
SKEW_BIN ?= $(SKEW_DIR)/bin
.PHONY: skew
skew: build kubectl $(SKEW_BIN)/gantry ## Test upgrades, and this version beside an older one (root; SKEW=commit)
	cd test && GANTRY_TEST_BIN=$(CURDIR)/bin GANTRY_SKEW_BIN=$(SKEW_BIN) GANTRY_TEST_UPGRADE=1 $(GO) test -count=1 -timeout 20m -run 'TestSkew|TestRollingUpgrade' ./e2e

$(SKEW_DIR)/bin/gantry:
	@mkdir -p $(CURDIR)/.cache/skew
	git worktree add --detach $(SKEW_DIR) $(SKEW)
	$(MAKE) -C $(SKEW_DIR) build GO="$(GO)"
	ln -sf $(CURDIR)/bin/kubectl $(SKEW_DIR)/bin/kubectl

# PARTS=suite runs a part only; SUITE adds flags (SUITE="-procs 2 -waiting", SUITE='-focus "Watchers should"').
PARTS ?= clients wayout foreign gateway suite two-nodes
.PHONY: conformance
conformance: build kubectl ## Run upstream's suite and real clients on a node (root; PARTS=suite for a part)
	cd test && $(GO) test ./conformance/
	$(if $(filter clients,$(PARTS)),cd test && GO="$(GO)" GANTRY_TEST_BIN=$(CURDIR)/bin $(GO) test -count=1 -timeout 40m ./conformance/clients/)
	$(if $(filter wayout,$(PARTS)),cd test && GO="$(GO)" GANTRY_TEST_BIN=$(CURDIR)/bin $(GO) test -count=1 -timeout 40m ./conformance/wayout/)
	$(if $(filter foreign,$(PARTS)),cd test && GO="$(GO)" GANTRY_TEST_BIN=$(CURDIR)/bin $(GO) test -count=1 -timeout 60m ./conformance/foreign/)
	$(if $(filter gateway,$(PARTS)),cd test && GO="$(GO)" GANTRY_TEST_BIN=$(CURDIR)/bin $(GO) test -count=1 -timeout 60m -v ./conformance/gateway/)
	$(if $(filter suite,$(PARTS)),cd test && GO="$(GO)" $(GO) run ./conformance/run -bin $(CURDIR)/bin $(SUITE))
	$(if $(filter two-nodes,$(PARTS)),cd test && GO="$(GO)" $(GO) run ./conformance/run -bin $(CURDIR)/bin -nodes 2 -procs 1 -list conformance/lists/two-nodes.txt)

# Not a part of "make ci": it takes minutes.
.PHONY: tour
tour: build kubectl ## Three machines for minutes: the tour with one killed in each step, one paused, a restore (root)
	cd test && GANTRY_E2E_TOUR=1 GANTRY_TEST_BIN=$(CURDIR)/bin $(GO) test -count=1 -v -timeout 30m -run "TestTourOnThreeMachines|TestMachinePaused|TestRestoreThenJoin" ./e2e

# BENCH=get,create runs these parts only; BENCH_FLAGS adds flags (-gantry-only, -rounds 5, -idle 10m, -defaults).
.PHONY: bench
bench: build ## Measure beside upstream Kubernetes and print one table (root; BENCH=get,create for a part)
	@mkdir -p .cache/bench
	cd test && $(GO) build -o $(CURDIR)/.cache/bench/bench ./bench
	cd test && GO="$(GO)" $(CURDIR)/.cache/bench/bench -bin $(CURDIR)/bin -only "$(BENCH)" -json $(CURDIR)/.cache/bench/results.json $(BENCH_FLAGS)

# NODES=1000 DURATION=30m, and FLEET_FLAGS="-load" to load the servers instead of killing machines.
NODES    ?= 100
DURATION ?= 10m
.PHONY: fleet
fleet: build ## Simulate many machines against three servers, and kill them at random (root; NODES=100 DURATION=10m)
	@mkdir -p .cache/bench
	cd test && $(GO) build -o $(CURDIR)/.cache/bench/fleet ./fleet
	$(CURDIR)/.cache/bench/fleet -bin $(CURDIR)/bin -nodes $(NODES) -duration $(DURATION) -json $(CURDIR)/.cache/bench/fleet.json $(FLEET_FLAGS)

.PHONY: generate
generate: ## Make the deep copies and definitions of the public types in api/ anew
	cd api && $(GO) run sigs.k8s.io/controller-tools/cmd/controller-gen@v0.23.0 object crd paths=./v1alpha1 output:crd:dir=crds

.PHONY: gateway-definitions
gateway-definitions: ## Copy the Gateway API's definitions out of its module anew
	@GO="$(GO)" scripts/gateway-definitions.sh

.PHONY: ci
ci: ## What CI runs: lint, build, race, e2e, tests
	$(MAKE) deps
	$(MAKE) build kubectl
	$(MAKE) lint
	$(MAKE) licences vulncheck
	$(MAKE) race-ci
	$(if $(wildcard test/e2e),$(MAKE) e2e)
	$(MAKE) test
