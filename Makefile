# Everything one does with this project. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo

# Where tests/bed/prepare puts what the tests need, and where the tests look for it.
export STEAD_BED ?= $(CURDIR)/target/bed

# rustup's cargo finds its toolchains by HOME. Under another HOME (sudo, a build machine) it is on the PATH and yet says
# that no toolchain is configured: then point it to the one it was installed with. What it downloads goes to HOME.
cargo_path := $(shell command -v $(CARGO))
ifeq ($(origin RUSTUP_HOME),undefined)
ifeq ($(wildcard $(HOME)/.rustup/toolchains/*),)
rustup_home := $(patsubst %/.cargo/bin/cargo,%/.rustup,$(filter %/.cargo/bin/cargo,$(cargo_path)))
ifneq ($(and $(rustup_home),$(wildcard $(rustup_home))),)
export RUSTUP_HOME := $(rustup_home)
endif
endif
endif

have_nextest := $(CARGO) nextest --version >/dev/null 2>&1

# What makes packages, as tests/bed/prepare has it too.
cargo_deb_version := $(shell sed -n 's/^cargo_deb_version=//p' tests/bed/prepare)

scripts := .ci/run contrib/debian/build contrib/debian/postinst contrib/debian/prerm contrib/debian/postrm demo/run tests/bed/prepare tests/bed/linux/init tests/bed/linux/power-button tests/bed/nested/init tests/bed/nested/systemd/nested-job tests/docs/boot tests/docs/enter tests/mutants/run fuzz/run

.PHONY: help
help: ## List what can be made
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: ## Show stead at work on real VMs: about a minute, leaves nothing behind
	@demo/run

.PHONY: build
build: need-cargo ## Build target/release/stead
	$(CARGO) build --release --locked

# The tests come last, so that what one sees at the end is their summary.
.PHONY: test
test: need-cargo prepare lint bench-quick ## Run everything: format, lints, and all tests, those on real VMMs too
	$(CARGO) test --locked --doc
	if $(have_nextest); then $(CARGO) nextest run --locked; else $(CARGO) test --locked --lib --bins --tests; fi

# Tests that start a VMM live in tests/vmm*, tests/host_linux and tests/nested, those with servers in tests/git_servers, those that
# break the host or ask another validator in tests/doctor.rs and tests/editor.rs, as root in tests/docs; plain `cargo test` cannot leave those out, so it runs the unit tests only.
.PHONY: test-quick
test-quick: need-cargo ## Run the tests that need nothing from the host
	if $(have_nextest); then $(CARGO) nextest run --locked -E 'not binary(/^(vmm|host_linux|nested|git_servers|doctor|editor|docs)/)'; \
	else $(CARGO) test --locked --lib --bins; fi

.PHONY: test-nested
test-nested: need-cargo prepare ## Run the tests in an emulated host: device-mapper, nested KVM, power cuts
	if $(have_nextest); then $(CARGO) nextest run --locked --test nested; else $(CARGO) test --locked --test nested; fi

# What takes hours. Each part can be run by itself: docs/testing.md.
.PHONY: proof
proof: need-cargo prepare ## Run what shows that no fault breaks a rule, at length: hours
	STEAD_PAIRS=all STEAD_HISTORIES=1000000 STEAD_RACES=10000 $(CARGO) test --locked --profile proof --test sim -- --nocapture
	STEAD_MODEL=full $(CARGO) test --locked --test model_check -- --test-threads 1 --nocapture
	STEAD_KILLS=10000 $(CARGO) test --locked --test vmm kills_at_any_moment -- --nocapture
	STEAD_SYSCALL_FAULTS=1 $(CARGO) test --locked --test vmm trouble_at_any_system_call -- --nocapture
	STEAD_RUNS=1000 $(CARGO) test --locked --test host_linux simulated -- --nocapture
	STEAD_POWER_CUTS=200 STEAD_ROUNDS=20 $(CARGO) test --locked --test nested -- --test-threads 2
	tests/mutants/run

HOURS ?= 1

.PHONY: soak
soak: need-cargo prepare ## Run one daemon through all weathers for HOURS (1): it must not grow
	STEAD_SOAK_HOURS=$(HOURS) $(CARGO) test --locked --test vmm a_daemon_in_all_weathers -- --nocapture

.PHONY: bench
bench: need-cargo prepare ## Measure what stead costs beside what cannot be avoided, for docs/performance.md: half an hour, as root
	$(CARGO) bench --locked --bench figures -- --write=$(CURDIR)/docs

# Whether each figure can still be taken; of what they are then, nothing is said. Built as the tests are.
.PHONY: bench-quick
bench-quick: need-cargo prepare ## Take each figure of make bench once, among few VMs
	$(CARGO) bench --locked --profile dev --bench figures -- --quick --write=$(CURDIR)/target/bench-quick

# FUZZ_SECONDS or FUZZ_RUNS bound each target: fuzz/run.
.PHONY: fuzz
fuzz: need-cargo ## Throw bytes at every parser, a minute each or FUZZ_SECONDS
	fuzz/run

.PHONY: lint
lint: need-cargo ## Check format, clippy and the shell scripts
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --all-targets --locked -- -D warnings
	if command -v shellcheck >/dev/null; then shellcheck $(scripts); \
	else echo "shellcheck is not installed (make prepare does): the scripts were not checked"; fi

.PHONY: fmt
fmt: need-cargo ## Format the code
	$(CARGO) fmt
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml

.PHONY: doc
doc: need-cargo ## Build the documentation of the library
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --locked --document-private-items

.PHONY: prepare
prepare: ## Install what the tests need: packages, Firecracker, a Linux guest
	@tests/bed/prepare

.PHONY: install
install: build ## Install to $(DESTDIR)$(PREFIX)
	install -D -m 0755 target/release/stead $(DESTDIR)$(PREFIX)/bin/stead

PROFILE ?= release
# cargo's folder of a profile: https://doc.rust-lang.org/cargo/guide/build-cache.html
profile_folder := $(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

.PHONY: deb
deb: need-cargo ## Make target/debian/stead_VERSION_amd64.deb; PROFILE=dev is built faster
	$(CARGO) build --locked --profile $(PROFILE) --bin stead
	PATH="$(STEAD_BED)/bin:$(CURDIR)/target/tools/bin:$$PATH" command -v cargo-deb >/dev/null || \
	$(CARGO) install --locked --debug --root target/tools --version $(cargo_deb_version) cargo-deb
	contrib/debian/build target/$(profile_folder)/stead target/debian

.PHONY: clean
clean: ## Remove all that was built, fetched or prepared
	rm -rf target

.PHONY: need-cargo
need-cargo:
ifeq ($(cargo_path),)
	$(error Rust is missing: install it by https://rustup.rs, or add the folder of cargo to PATH)
endif
	@:
