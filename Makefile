# `make demo` shows sealblk at work; `make test` proves it. Each target installs what it needs: Debian
# packages (with sudo when you are not root) and, for the audit, one tool from crates.io.

export CARGO_TARGET_DIR ?= $(CURDIR)/target
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY := $(CARGO_TARGET_DIR)/tools/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny

.PHONY: build demo test test-aarch64 fmt lint doc audit bench bench-without-vaes packages

build: packages
	cargo build --release

# A guest on an encrypted 1 GiB disk, and the proof that the host's file is ciphertext.
demo: packages
	demo/run

test: packages fmt lint doc
	cargo test --no-fail-fast

# The cipher on the other architecture, under emulation: a Debian of its own is made once, in the
# target folder (1.8 GB).
test-aarch64: packages
	.ci/test-aarch64

fmt:
	cargo fmt --check

lint: packages
	cargo clippy --all-targets -- -D warnings

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

# Ratios count, not numbers: both benchmarks measure others beside sealblk in the same run.
# OpenSSL is built anew, once, for its newest code.
bench: packages
	OPENSSL_NO_VENDOR=0 cargo bench --bench xts
	OPENSSL_NO_VENDOR=0 cargo bench --bench datapath

# The cipher as on a CPU with AES-NI alone.
bench-without-vaes: packages
	cargo bench --manifest-path benches/without-vaes/Cargo.toml --bench xts

packages:
	@.ci/install-packages
