.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
UV := $(shell command -v uv || echo .local/uv/bin/uv)
BIN := .venv/bin
APT := -o Dir::State::Lists=./lists -o Dir::Cache=./cache -o APT::Sandbox::User=$(shell id -un)
SOURCES := -o Dir::Etc::SourceList=./sources -o Dir::Etc::SourceParts=/dev/null
CHROMIUM := chromium fonts-inter fonts-jetbrains-mono
export UV_PYTHON_DOWNLOADS := never

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: .venv/installed ## Start servers and workers on this machine, publish real text, search it
	REQUIRE_GPU=0 $(BIN)/stream local demo

down: ## Stop what `make demo` started; keep its data
	@if test -x $(BIN)/stream; then $(BIN)/stream local down; fi

check: lint types prometheus chromium ## Style, types and the tests that need no server: for the minute before a commit
	$(BIN)/pytest -q -n 2 --dist worksteal -m "not servers"

# A module is compiled once, not in each process that imports it.
test: export PYTHONDONTWRITEBYTECODE :=
test: .venv/installed ## Run every test, including those against real servers
	$(MAKE) --no-print-directory --jobs=3 --output-sync lint types vllm clients prometheus chromium
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder

test-image: .venv/installed ## Build the image and run it, without a daemon: needs root, buildah and debootstrap
	$(BIN)/pytest --confcutdir=tests/image tests/image/image.py

test-producers: .venv/installed ## Run the examples for Go and Node of docs/producers.md: needs Go, Node and npm
	$(BIN)/pytest tests/integration/producers.py

test-compose: .venv/installed .local/docker-compose/installed ## Run compose/ with a Docker engine of its own: needs root, docker.io, slirp4netns
	$(BIN)/pytest -x --durations=5 --confcutdir=tests/compose tests/compose/compose.py

test-cluster: .venv/installed ## Kill a node of three of OpenSearch under load, with real workers and a reindex
	$(BIN)/pytest -s tests/cluster/cluster.py

test-secured: .venv/installed ## Run the tests against OpenSearch with its security plugin
	$(BIN)/pytest tests/secured/secured.py

test-gpu: .venv/installed ## Run the tests that need a CUDA GPU
	$(BIN)/pytest --confcutdir=tests/gpu tests/gpu

vllm: .local/vllm/installed ## Install a real vLLM for the CPU, which the tests use

clients: .local/clients/installed ## Install the libraries of other projects that search this index, which the tests use

prometheus: $(if $(shell command -v promtool),,.local/prometheus/usr/bin/promtool) ## Install Prometheus from Debian if promtool is missing

chromium: $(if $(shell command -v chromium),,.local/chromium/installed) ## Install Chromium from Debian if it is missing

screenshots: .venv/installed chromium ## Take the screenshots of the README
	SCREENSHOTS=docs/figures $(BIN)/pytest tests/page/test_page.py -k screenshots

faults: .venv/installed ## Inject faults into real servers: SEED=1 MINUTES=30 BROKERS=1, or ONLY="words of a row of docs/faults.md"
	PYTHONPATH=tests $(BIN)/python -m faults --seed $(or $(SEED),1) --minutes $(or $(MINUTES),30) \
	  --brokers $(or $(BROKERS),1) $(if $(ONLY),--only "$(ONLY)") --page docs/faults.md

test-matrix: .venv/installed ## Run tests with other versions of the servers, Java, Python and vLLM: all, or ONLY="neo4j"
	PYTHONPATH=tests $(BIN)/python -m matrix $(if $(ONLY),--only "$(ONLY)")

lint: .venv/installed ## Check style and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: .venv/installed ## Check static types
	$(BIN)/mypy

docs: .venv/installed ## Generate the pages of docs/ for settings, metrics and the HTTP interface
	$(BIN)/stream settings --markdown > docs/configuration.md
	$(BIN)/stream metrics --markdown > docs/metrics.md
	$(BIN)/stream serve --openapi > docs/openapi.json

site: .venv/installed ## Build docs/ as a web site into site/
	$(BIN)/mkdocs build --strict

lock: $(UV) ## Pin the newest versions that pyproject.toml allows (UPGRADE=1 also moves existing pins)
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --all-extras \
	  --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) pyproject.toml -o requirements.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) \
	  --overrides tests/contract/vllm-overrides.txt tests/contract/vllm.in -o tests/contract/vllm.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) tests/clients/clients.in -o tests/clients/clients.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --extra aws --extra traces --extra serve \
	  --custom-compile-command "make lock" --constraints requirements.txt pyproject.toml -o compose/requirements.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --extra aws --extra traces --extra serve \
	  --custom-compile-command "make lock" --constraints requirements.txt --overrides compose/cpu-overrides.txt \
	  pyproject.toml -o compose/requirements-cpu.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --extra aws --extra traces --extra serve \
	  --custom-compile-command "make lock" --constraints requirements.txt --overrides compose/lean-overrides.txt \
	  pyproject.toml -o compose/requirements-lean.txt
	echo hatchling | $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) - -o compose/requirements-build.txt

clean: ## Remove what was installed and the data of the local servers
	-$(BIN)/stream local down
	rm -rf .venv .local

.venv/installed: requirements.txt pyproject.toml | $(UV)
	@test -d .venv || $(UV) venv --quiet --python '>=3.11,<3.14' .venv
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

.local/vllm/installed: tests/contract/vllm.txt | $(UV)
	@test -x .local/vllm/bin/python || $(UV) venv --quiet --python '>=3.11,<3.14' .local/vllm
	$(UV) pip sync --quiet --python .local/vllm/bin/python --require-hashes tests/contract/vllm.txt
	@touch $@

.local/clients/installed: tests/clients/clients.txt | $(UV)
	@test -x .local/clients/bin/python || $(UV) venv --quiet --python '>=3.11,<3.14' .local/clients
	$(UV) pip sync --quiet --compile-bytecode --python .local/clients/bin/python --require-hashes tests/clients/clients.txt
	@touch $@

.local/prometheus/usr/bin/promtool:
	@mkdir -p .local/apt/lists/partial .local/apt/cache
	cd .local/apt && apt-get -qq $(APT) update && apt-get -qq $(APT) download prometheus
	dpkg-deb --extract .local/apt/prometheus_*.deb .local/prometheus

# Of a release of Debian whose docker-compose is version 2; a program in Go needs nothing else of it.
.local/docker-compose/installed:
	@mkdir -p .local/docker-compose/lists/partial .local/docker-compose/cache
	cd .local/docker-compose && echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
	  $$(apt-get indextargets --format '$$(REPO_URI)' 'Created-By: Packages' | grep -m 1 '/debian/$$') trixie main" > sources \
	  && apt-get -qq $(APT) $(SOURCES) update \
	  && apt-get -qq $(APT) $(SOURCES) download docker-compose && dpkg-deb --extract docker-compose_*.deb .
	@touch $@

# Root installs the packages. An ordinary user extracts them, and those that they need and that are not installed.
.local/chromium/installed:
ifeq ($(shell id -u),0)
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $(CHROMIUM)
else
	@mkdir -p .local/apt/lists/partial .local/apt/cache .local/chromium
	cd .local/apt && apt-get -qq $(APT) update && apt-get $(APT) -s --no-install-recommends install $(CHROMIUM) \
	  | awk '/^Inst/ {print $$2}' | xargs apt-get -qq $(APT) download
	for package in .local/apt/*.deb; do dpkg-deb --extract $$package .local/chromium || exit 1; done
	@touch $@
endif

.local/uv/bin/uv:
	$(PYTHON) -m venv .local/uv
	.local/uv/bin/pip install --quiet --disable-pip-version-check uv

.PHONY: help demo down check test test-gpu test-image test-matrix vllm clients prometheus chromium screenshots faults lint types docs site lock clean test-producers test-compose test-cluster test-secured
