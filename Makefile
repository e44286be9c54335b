# VirtShell's commands; each one is a script in hack/ that says what it does, and works alone too.
SHELL := /bin/bash
# Where rustup puts cargo; the shell that `make up` installed it from does not know yet.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
.DEFAULT_GOAL := help
.PHONY: help up down clean clean-cache build test test-s3 check fuzz generate tour bench bench-gateway scale scale-controller

help: ## this list
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

up: ## VirtShell on this machine, ending with two running guests (root)
	@hack/up.sh

down: ## stop what `make up` started; guests run on
	@hack/down.sh

clean: ## remove everything `make up` made: guests, data, state
	@hack/clean.sh

clean-cache: ## remove the built control plane and guest images from ~/.cache/virtshell
	@hack/clean.sh --cache

build: ## release binaries in target/release
	@cargo build --release --locked

test: ## install what is missing, check, and run every level of tests (root)
	@hack/test.sh

test-s3: ## blobs of the gateway on an S3 server, which comes from PyPI
	@hack/test-s3.sh

check: ## format, lints, documentation
	@hack/check.sh

fuzz: ## half an hour of requests that nobody would send, and of nonsense for the parsers
	@hack/fuzz.sh

generate: ## write manifests/crds from the types in crds/, docs/openapi.json and docs/api.md from the gateway
	@cargo run --quiet --locked -p virtshell-crds --bin crdgen
	@cargo run --quiet --locked -p virtshell-gateway --bin openapi
	@VIRTSHELL_WRITE_DOCS=1 cargo test --quiet --locked -p virtshell-gateway --test virtshell reference

tour: up ## break what VirtShell must survive, and see what it does (root)
	@hack/tour.sh

bench: up ## measure VirtShell on this machine beside raw libvirt (root)
	@. $${VIRTSHELL_STATE_DIR:-.virtshell}/env && cargo run --quiet --release --locked -p virtshell-tests --bin bench

bench-gateway: build ## measure the gateway beside the API server it stands on: reads, writes, memory (needs wrk)
	@cargo run --quiet --release --locked -p virtshell-tests --bin bench_gateway

scale-controller: build ## measure the controller with ten thousand Instances on a hundred hosts that a model plays
	@cargo run --quiet --release --locked -p virtshell-tests --bin controller_scale

scale: build ## measure the node agent with a thousand Instances on libvirt's test driver
	@cargo run --quiet --release --locked -p virtshell-tests --bin scale
