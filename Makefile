# TicketWave. "make" lists what there is.
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo run up down clean migrate build test test-full chaos soak bench lint fmt generate tools-race

GOLANGCI_VERSION := v2.15.0
MODULES  := chaos contracts outbox sql services bench
EVERYTHING := $(MODULES:%=./%/...)
PROGRAMS := booking catalog payment notification saga ticketwave
SCENARIOS := success sold-out declined expired cancelled late-payment
STYLES   := choreography orchestration
BIN      := $(CURDIR)/bin
TOOLS    := $(CURDIR)/.run/tools
LINT     := $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION)
ENV      := set -a; . $(CURDIR)/.run/env; set +a
export GOFLAGS := -mod=readonly

comma := ,
space := $(subst ,, )
ifneq ($(filter-out $(SCENARIOS),$(SCENARIO)),)
$(error SCENARIO is "$(SCENARIO)": want one of $(subst $(space),$(comma) ,$(SCENARIOS)))
endif
ifneq ($(filter-out $(STYLES),$(SAGA)),)
$(error SAGA is "$(SAGA)": want $(subst $(space), or ,$(STYLES)))
endif
ifdef SAGA
export TW_SAGA := $(SAGA)
endif

help: ## list the targets
	@echo "TicketWave: a transactional outbox pipeline, and the ticket shop that shows it."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  SCENARIO   $(subst $(space), | ,$(SCENARIOS))"
	@echo "  SAGA       $(subst $(space), | ,$(STYLES))"

demo: build ## book two tickets, pay, and watch every step; SCENARIO and SAGA choose another end and style
	@deploy/with-stack.sh $(BIN)/ticketwave demo $(SCENARIO)

run: build up ## run all services in the foreground on ports 5001 to 5005, until Ctrl-C; SAGA=orchestration
	@$(ENV); exec deploy/foreground.sh $(BIN)/ticketwave run

up: ## start PostgreSQL and RabbitMQ, or find them, and write .run/env
	@deploy/stack.sh up

down: ## stop what "make up" started; data stays
	@deploy/stack.sh down

clean: ## "make down", and remove the data
	@deploy/stack.sh clean
	@rm -rf $(BIN)

migrate: build up ## create and migrate the databases, declare the topology
	@$(ENV); $(BIN)/ticketwave migrate && $(BIN)/ticketwave topology apply

build: ## compile all programs into bin/
	@mkdir -p $(BIN)
	@cd services && go build -o $(BIN)/ $(addprefix ./cmd/,$(PROGRAMS))
	@cd outbox && go build -o $(BIN)/ ./cmd/relay ./cmd/outboxctl

# Packages of all modules side by side. chaos comes first: it takes minutes and mostly waits.
# What vet finds "make lint" finds too.
test: tools-race up ## run the tests on real servers, with the race detector
	@$(ENV); go test -race -vet=off -count=1 -timeout 25m $(EVERYTHING)

test-full: tools-race up ## the tests, and those that take longer
	@$(ENV); for module in $(MODULES); do \
		echo "--- $$module"; (cd $$module && go test -race -count=1 -timeout 60m -tags full ./...) || failed=1; \
	done; [ -z "$${failed:-}" ]

chaos: tools-race ## inject every fault of the matrix into servers of its own; ONLY=3,20 chooses rows, SEED=7 repeats a run
	@mkdir -p $(BIN) && cd chaos && go test -c -o $(BIN)/chaos.test . && \
		exec $(BIN)/chaos.test -test.run TestFaults -test.timeout 60m -all -only '$(ONLY)' -seed $(or $(SEED),0) -saga $(or $(SAGA),choreography)

soak: ## combine random faults under load; FOR=30m says how long, SEED=7 draws the same ones
	@mkdir -p $(BIN) && cd chaos && go test -c -o $(BIN)/chaos.test . && \
		exec $(BIN)/chaos.test -test.run TestSoak -test.timeout 0 -soak $(or $(FOR),10m) -seed $(or $(SEED),0) -saga $(or $(SAGA),choreography)

bench: build up ## compare with what else there is; ONLY=drain,latency chooses rows, QUICK=1 takes five minutes
	@$(ENV); cd bench && go test -c -o $(BIN)/bench.test . && \
		$(BIN)/bench.test -test.bench Pipeline -test.benchtime 1x -test.timeout 60m -only '$(ONLY)' $(if $(QUICK),-quick)

lint: $(LINT) ## golangci-lint, pinned, over all modules at once
	@unformatted=$$(gofmt -l $(MODULES)); [ -z "$$unformatted" ] || { echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; }
	@$(LINT) run --allow-parallel-runners $(EVERYTHING)

generate: ## generate the administration API's Go code from its specification again
	@cd outbox/admin/api && GOWORK=off GOFLAGS=-mod=mod go generate .

fmt: ## format the code
	@gofmt -w $(MODULES)

$(LINT):
	@echo "installing golangci-lint $(GOLANGCI_VERSION), which takes some minutes once"
	@mkdir -p $(TOOLS)
	@GOFLAGS= GOWORK=off GOBIN=$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	@mv $(TOOLS)/golangci-lint $@

# The race detector and a server with a clock of its own need a C compiler.
tools-race:
	@command -v gcc >/dev/null && [ -e /usr/include/stdlib.h ] || deploy/stack.sh install gcc libc6-dev
