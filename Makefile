# `make` or `make help` lists what there is.

.DEFAULT_GOAL := help
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c

# What `make test` installs comes first, so that the pinned tools are the ones that run.
export PATH := $(CURDIR)/.dev/bin:$(PATH)

CARGO_DENY_VERSION := 0.20.2
cargo_deny := .dev/bin/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny
CARGO_FUZZ_VERSION := 0.13.2
cargo_fuzz := .dev/bin/cargo-fuzz-$(CARGO_FUZZ_VERSION)/bin/cargo-fuzz

FUZZ_TARGETS := json_rpc ws_frame logs abi contracts_toml
FUZZ_SECONDS := 600
# The stable compiler has what libFuzzer needs, behind a switch. No address sanitizer: the crate has no unsafe code.
fuzz_run := RUSTC_BOOTSTRAP=1 nice -n 19 $(cargo_fuzz) run --release --debug-assertions --sanitizer none

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## build and run the listener on a built-in chain; needs nothing else; Ctrl-C ends it
	cargo run --locked -- run --demo

.PHONY: test
test: tools ## install what the tests need (once) and run every test
	cargo test --locked

.PHONY: soak
soak: tools ## kill the listener 100 times over a catch-up of 20,000 blocks, with each store; takes some minutes
	CHAINTAP_SOAK=100 cargo test --locked --test crash kills -- --nocapture --test-threads=1

.PHONY: vendors
vendors: tools ## three endpoints that lag, throttle and leave out by turns serve CHAINTAP_VENDORS (10000) blocks; says how much later than good ones
	CHAINTAP_VENDORS=$${CHAINTAP_VENDORS:-10000} cargo test --locked --test vendors three_vendors -- --nocapture

SEEDS ?= 100000

.PHONY: sim
sim: ## simulate SEEDS seeds of everything that may go wrong
	SIM_SEEDS=$(SEEDS) cargo test --locked --profile sim --test simulation seeds -- --nocapture

.PHONY: sim-ci
sim-ci: ## simulate fresh seeds for two minutes, the ones that failed once, and a crash at every call of some stories
	SIM_MINUTES=2 SIM_EXHAUSTIVE=1 SIM_TWICE=100 cargo test --locked --profile sim --test simulation -- --nocapture

.PHONY: mutants
mutants: ## plant faults in the pipeline and in the store's model, one at a time, and say which test finds each
	cargo test --locked --profile sim --features mutants --test simulation mutants -- --nocapture --test-threads=1

.PHONY: blackbox
blackbox: tools ## every fault at once against the real binary, CHAINTAP_BLACKBOX_MINUTES (15) for each of five stores, two at a time
	CHAINTAP_BLACKBOX_MINUTES=$${CHAINTAP_BLACKBOX_MINUTES:-15} nice cargo test --locked --test black_box -- --nocapture --test-threads=2

ONLY ?=

# With ONLY the figures are printed alone. Nothing else should run on the machine meanwhile. What is measured is built
# apart: beside a bench its dependencies have what tests need of them, such as a clock that can be paused.
.PHONY: bench
bench: tools ## measure everything against bare references and write docs/benchmarks.md, some minutes; ONLY=history prints one part
	cargo build --locked --release
	install -D target/release/chaintap target/released/chaintap
	ONLY=$(ONLY) CHAINTAP_BINARY=$(CURDIR)/target/released/chaintap cargo bench --locked --bench throughput
	$(if $(ONLY),,cargo bench --locked --bench stages)

.PHONY: dev
dev: tools ## start Redis, MongoDB-wire, SQS and an EVM node; print the environment for `chaintap run`
	@tests/support/dev.sh start

.PHONY: dev-stop
dev-stop: ## end what `make dev` started; their data stays
	@tests/support/dev.sh stop

.PHONY: clean-dev
clean-dev: dev-stop ## end what `make dev` started, and delete their data and logs
	rm -rf .dev/run

.PHONY: check
check: ## formatting and lints, warnings as errors
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

.PHONY: doc
doc: ## build the documentation, warnings as errors
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --locked --no-deps --document-private-items

.PHONY: deny
deny: $(cargo_deny) ## dependencies: bans, licences, sources, and that the fuzz targets' lock file has them all
	$(cargo_deny) --locked check --hide-inclusion-graph bans licenses sources
	@cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml > /dev/null

# One target after the other; what they find new is kept beside what they build, and a failing input with it.
.PHONY: fuzz
fuzz: $(cargo_fuzz) ## fuzz what comes in from outside; FUZZ_SECONDS=600 for each of FUZZ_TARGETS
	@for target in $(FUZZ_TARGETS); do \
	  mkdir -p fuzz/target/found/$$target fuzz/target/failed/$$target; \
	  $(fuzz_run) $$target fuzz/target/found/$$target fuzz/corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) \
	    -artifact_prefix=fuzz/target/failed/$$target/ -max_len=8192 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1; \
	done

.PHONY: fuzz-smoke
fuzz-smoke: ## run the corpus of the fuzz targets, and small changes of it; `make test` does it too
	cargo test --locked --test fuzz_corpus

.PHONY: advisories
advisories: $(cargo_deny) ## dependencies: known vulnerabilities; needs github.com, where the database is
	@$(cargo_deny) --locked check advisories || { \
	  echo "Where the message above is about fetching: this needs https://github.com/RustSec/advisory-db." >&2; exit 1; }

.PHONY: tools
tools: ## install what the tests need into .dev/ (`make test` does it)
	@tests/support/install.sh

# Built once, which takes minutes: apart from the tests' tools, which do not need it.
$(cargo_deny):
	cargo install --quiet --locked --root .dev/bin/cargo-deny-$(CARGO_DENY_VERSION) cargo-deny@$(CARGO_DENY_VERSION)

$(cargo_fuzz):
	cargo install --quiet --locked --root .dev/bin/cargo-fuzz-$(CARGO_FUZZ_VERSION) cargo-fuzz@$(CARGO_FUZZ_VERSION)
