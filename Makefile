# `make demo` and `make test` do all the set-up themselves. Other targets: see CONTRIBUTING.md.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
HANDOVER ?= v2
SEEDS ?= 100000
UPGRADES ?= 500
MINUTES ?= 1
SEED ?= 0
RUN := .venv/bin/python -m
LOCK := build/lock/bin/python -m piptools compile --quiet --strip-extras --generate-hashes --allow-unsafe \
    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links
ON_DEVCHAIN := e2e and not node and not kube and not compose and not systemd and not demo
CODE := dcupgrade chain_watcher attestation keyvault process_supervisor devnet tests benchmarks docs

.PHONY: help setup demo test test-go go-if-there lint types unit e2e e2e-long e2e-node e2e-kube e2e-compose e2e-systemd e2e-demo formal simulate kill-matrix fuzz soak load bench docs lock clean images install wheels uninstall release

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## make .venv from requirements.lock
	@PYTHON=$(PYTHON) .ci/setup

demo: setup ## a whole upgrade on a development chain, before your eyes
	@$(RUN) devnet demo --handover $(HANDOVER) $(if $(STAY),--stay)

test: lint types go-if-there unit e2e ## everything a change must pass

lint: setup
	$(RUN) ruff check $(CODE)
	$(RUN) ruff format --check $(CODE)

types: setup
	$(RUN) mypy
	$(RUN) mypy -p tests -p benchmarks

test-go: ## the Go library and node (needs Go 1.26)
	@.ci/test-go

go-if-there:
	@.ci/test-go --if-there

unit: setup ## unit, property, simulation and conformance tests
	$(RUN) pytest -q -n 2 -m "not e2e and not formal" tests

e2e: setup ## real processes on a development chain
	$(RUN) pytest -q -n 3 -m "$(ON_DEVCHAIN) and not slow" tests

e2e-long: setup ## longer trials on a development chain: first installs, Go nodes, kills, floods, pages, a short soak
	$(RUN) pytest -q -n 3 -m "$(ON_DEVCHAIN) and slow" tests

e2e-node: setup ## the upgrade on a real node with GRANDPA finality
	@$(RUN) devnet node-build --apt
	$(RUN) pytest -q -m "e2e and node" tests

e2e-kube: setup ## fleets and manifests on a real kube-apiserver
	@$(RUN) devnet kube-build --apt
	$(RUN) pytest -q -m "e2e and kube" tests

e2e-compose: setup ## the upgrade in containers
	@$(RUN) devnet.docker.engine --apt
	$(RUN) pytest -q -m "e2e and compose" tests

e2e-systemd: setup ## the upgrade under the systemd units, in a Debian that is booted for it
	@$(RUN) devnet.systemd_host --apt
	$(RUN) pytest -q -m "e2e and systemd" tests

e2e-demo: setup ## the demonstration, ended by signals at different moments
	$(RUN) pytest -q -n 2 -m "e2e and demo" tests

formal: setup ## the symbolic models of the protocol, whole and with planted weaknesses
	$(RUN) pytest -q -m formal tests/formal

simulate: setup ## SEEDS=n simulated upgrades with faults
	$(RUN) tests.simulation.run --seeds $(SEEDS)

kill-matrix: setup ## SIGKILL of every process at every journal boundary
	$(RUN) tests.e2e.kill_matrix

fuzz: setup ## MINUTES=n (SEED=m) of coverage-guided fuzzing, every decoder of outside bytes; table in build/fuzz/fuzz.md
	@.ci/fuzz $(MINUTES) $(SEED)

soak: setup ## UPGRADES=n upgrades in a row with kills of everything; table in build/soak.md
	$(RUN) tests.load.soak --upgrades $(UPGRADES)

load: setup ## hostile requests on every port beside honest handovers; table in build/load.md
	$(RUN) tests.load.hostile

bench: setup ## every benchmark; table and plots in docs/benchmarks (QUICK=1: in a few minutes, in build/benchmarks)
	$(RUN) benchmarks.run $(if $(QUICK),--quick --out build/benchmarks)

docs: setup ## generated pages and the documentation site (build/site)
	.venv/bin/python docs/build.py

lock: ## resolve the dependencies of pyproject.toml anew, in an environment of its own
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/python -m pip install --quiet pip-tools==7.6.2
	$(LOCK) --only-build-deps --all-build-deps -o requirements.build.lock pyproject.toml
	$(LOCK) --extra dev --extra publish -o requirements.lock pyproject.toml
	$(LOCK) -o requirements.runtime.lock pyproject.toml
	$(LOCK) --extra publish -o requirements.publish.lock pyproject.toml
	$(RUN) keyvault.enclave_content >requirements.enclave.lock
	$(LOCK) -o requirements.release.lock requirements.release.in
	$(LOCK) -o requirements.fuzz.lock requirements.fuzz.in

install: ## install under PREFIX (default /usr/local; DESTDIR is honoured; WHEELS=folder needs no registry; EXTRA=publish)
	@PYTHON=$(PYTHON) EXTRA=$(EXTRA) .ci/install install

wheels: setup ## fetch what `make install WHEELS=build/wheels` needs on a host without a registry
	$(RUN) pip download --quiet --no-deps --require-hashes --no-build-isolation -d build/wheels -r requirements.build.lock
	$(RUN) pip download --quiet --no-deps --require-hashes --no-build-isolation -d build/wheels -r requirements.publish.lock

images: ## dcupgrade/agent and dcupgrade/vault by the container engine; BASE_IMAGE= and GRAMINE_IMAGE= name what they are made from
	@PYTHON=$(PYTHON) .ci/images

uninstall: ## remove the program; journal and sealed keys stay
	@.ci/install uninstall

release: setup ## TAG=vX.Y.Z: wheel, sdist, SBOM, image, notes and checksums in build/release
	@PYTHON=$(PYTHON) TAG=$(TAG) .ci/release

clean: ## remove what the targets made in this folder
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis run
