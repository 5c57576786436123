# `make demo` shows sealblk at work; `make test` proves it. Each target installs what it needs: Debian
# packages (with sudo when you are not root) and, for the audit and for fuzzing, a tool from crates.io.

export CARGO_TARGET_DIR ?= $(CURDIR)/target
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY := $(CARGO_TARGET_DIR)/tools/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny

CARGO_FUZZ_VERSION := 0.13.1
CARGO_FUZZ := $(CARGO_TARGET_DIR)/tools/cargo-fuzz-$(CARGO_FUZZ_VERSION)/bin/cargo-fuzz
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))

SEEDS ?= 10000
FIRST_SEED ?= 1
# Of the chaos.
SECONDS ?= 600
SEED ?= $(shell date +%s)

.PHONY: build demo test test-aarch64 simulate mutations chaos fmt lint doc audit bench bench-replication bench-volumes bench-without-vaes fuzz packages

build: packages
	cargo build --release

# A guest on an encrypted 1 GiB disk, and the proof that the host's file is ciphertext.
demo: packages
	demo/run

test: packages fmt lint doc
	cargo test --no-fail-fast

# Replication in worlds made of seeds: SEEDS of them from FIRST_SEED on; TRACE=1 prints the first.
simulate: packages
	SEEDS=$(SEEDS) FIRST_SEED=$(FIRST_SEED) cargo test --profile simulation --test simulation -- --nocapture any_seed_holds

# Replication with real processes: CHAOS_SECONDS of everything that can happen, from SEED on. Needs root.
chaos: packages
	CHAOS_SECONDS=$(SECONDS) SEED=$(SEED) cargo test --test replication -- --nocapture --test-threads 1 disorder

# Whether the simulator finds what it is for: each mutation breaks a promise on purpose, and must be caught.
mutations: packages
	integration/simulation/mutations/run

# The cipher on the other architecture, under emulation: a Debian of its own is made once, in the
# target folder (1.8 GB).
test-aarch64: packages
	.ci/test-aarch64

fmt:
	cargo fmt --check

# The fuzz targets are a crate of their own, whose lock file must keep up with this one's.
lint: packages
	cargo clippy --all-targets -- -D warnings
	cargo metadata --locked --manifest-path fuzz/Cargo.toml --format-version 1 > /dev/null

doc: packages
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

# Licences, duplicates, sources; known vulnerabilities where their database can be reached.
audit: $(CARGO_DENY)
	$(CARGO_DENY) check bans licenses sources
	@if $(CARGO_DENY) fetch db; then \
		$(CARGO_DENY) check advisories; \
	else \
		echo "audit: the advisory database cannot be reached; known vulnerabilities were NOT checked"; \
	fi

$(CARGO_DENY):
	cargo install cargo-deny --version $(CARGO_DENY_VERSION) --locked --root $(dir $(@D))

# The cipher, the data path on a disk and on tmpfs, what sealblk itself costs, and instruction counts:
# eight minutes. Ratios count, not numbers: the first two measure others beside sealblk in the same run.
# First everything is built, so that nothing is measured beside a compiler; OpenSSL too, once, in a few
# minutes more: its newest code is faster than Debian's.
bench bench-volumes: export OPENSSL_NO_VENDOR = 0
bench: packages
	cargo bench --no-run --bench xts --bench datapath --bench ceiling --bench instructions
	cargo bench --bench xts -- --warm-up-time 0.2 --measurement-time 1 --sample-size 20
	cargo bench --bench datapath
	cargo bench --bench ceiling
	cargo bench --bench instructions

# Three copies beside the same without TLS, one copy, and QEMU's quorum over NBD with TLS, in the same run.
bench-replication: packages
	cargo bench --features bench-plaintext --bench replication

# The cipher as on a CPU that has AES-NI and no VAES.
bench-without-vaes: packages
	cargo bench --locked --manifest-path benches/without-vaes/Cargo.toml --bench xts

# Idle volumes and many of them: takes minutes, and fails where a target is missed.
bench-volumes: packages
	cargo bench --bench volumes

# Each of FUZZ_TARGETS over random input, from its corpus on. The corpus that grows stays in the target
# folder; a crash goes to fuzz/artifacts.
# The sanitizers are switches of nightly Rust; RUSTC_BOOTSTRAP lets a stable one have them.
fuzz: packages $(CARGO_FUZZ)
	for target in $(FUZZ_TARGETS); do \
		mkdir -p $(CARGO_TARGET_DIR)/fuzz/corpus/$$target && \
		RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/fuzz $(CARGO_FUZZ) run $$target \
			$(CARGO_TARGET_DIR)/fuzz/corpus/$$target fuzz/corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) \
			|| exit 1; \
	done

$(CARGO_FUZZ):
	cargo install cargo-fuzz --version $(CARGO_FUZZ_VERSION) --locked --root $(dir $(@D))

packages:
	@.ci/install-packages
