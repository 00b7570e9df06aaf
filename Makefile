# Everything one does with a checkout. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test prove bench lint fmt build envoy cluster cluster-down

CARGO ?= cargo
# Arguments for the demo: make demo ARGS="--once --no-tty"
ARGS ?=
# Which benchmarks; all if not said.
BENCH ?=
# Where tools that are built once are kept, so that every checkout shares them.
TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/airlane/tools
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY := $(TOOLS)/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny

# How many nodes the cluster has.
NODES ?= 1

# Expanded only in the targets that need an Envoy, which fetches it the first time.
with-envoy = AIRLANE_ENVOY="$$(tests/support/envoy.sh)"

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

demo: build ## Bring up a mesh of example services, release a bad version and a good one (ARGS="--once --no-tty")
	@export $(with-envoy); $(CARGO) run --quiet --bin airlane -- demo $(ARGS)

test: build ## Run every test, on real Envoys and a real Kubernetes cluster
	@tests/cluster/prepare.sh >/dev/null || [[ $$? == 77 && -z $${AIRLANE_REQUIRE:-} ]] # the tests say that they are skipped
	export $(with-envoy); $(CARGO) test --workspace

prove: build ## Run the long proofs: more requests, more rollouts, more simulated runs; prints the figures of the docs
	export $(with-envoy) AIRLANE_PROVE=1; $(CARGO) test --package airlane-tests --test cases -- --nocapture zero_loss rollout
	export $(with-envoy) AIRLANE_PROVE=1; $(CARGO) test --package airlane-tests --test kubernetes -- --nocapture soak
	export AIRLANE_RUNS=10; $(CARGO) test --package airlane-core --test pipeline -- --nocapture

bench: ## Measure what the mesh costs (BENCH="compile footprint changes fleet scale call" picks)
	$(CARGO) build --release --workspace --bins --bench mesh
	export $(with-envoy); $(CARGO) bench --workspace --bench mesh -- $(BENCH)

lint: $(CARGO_DENY) ## Check formatting, lints, licences and the sources of dependencies
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets -- --deny warnings
	$(CARGO_DENY) --workspace --log-level error check bans licenses sources

fmt: ## Format the code
	$(CARGO) fmt --all

build: ## Build the operator and the sidecar
	$(CARGO) build --workspace

envoy: ## Fetch Envoy if this machine has none, and print where it is
	@tests/support/envoy.sh

cluster: ## Bring up a small Kubernetes cluster on this machine to play with (NODES=3, root only)
	@NODES=$(NODES) tests/cluster/up.sh
	@tests/cluster/exec.sh kubectl get nodes
	@echo
	@echo "It is in a network of its own. Run what you like inside it:"
	@echo "  tests/cluster/exec.sh kubectl get pods -A"
	@echo "  tests/cluster/exec.sh            a shell, with kubectl, helm and KUBECONFIG"
	@echo "  make cluster-down"

cluster-down: ## End that cluster, leaving nothing behind
	@tests/cluster/down.sh

$(CARGO_DENY):
	@echo "building cargo-deny $(CARGO_DENY_VERSION) (once, about 5 minutes) into $(TOOLS)"
	$(CARGO) install --quiet --locked cargo-deny --version $(CARGO_DENY_VERSION) --root $(TOOLS)/cargo-deny-$(CARGO_DENY_VERSION)
