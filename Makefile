# `make demo` shows sealblk at work; `make test` proves it. Each target installs what it needs: Debian
# packages (with sudo when you are not root) and, for the audit, one tool from crates.io.

export CARGO_TARGET_DIR ?= $(CURDIR)/target
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY := $(CARGO_TARGET_DIR)/tools/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny

.PHONY: build demo test fmt lint doc audit bench packages

build: packages
	cargo build --release

# A guest on an encrypted 1 GiB disk, and the proof that the host's file is ciphertext.
demo: packages
	demo/run

test: packages fmt lint doc
	cargo test --no-fail-fast

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

# The cipher, the data path on a disk and on tmpfs, what sealblk itself costs, and instruction counts.
# Ratios count, not numbers: the first two measure others beside sealblk in the same run. Building
# comes first, so that nothing is measured beside a compiler. It takes about nine minutes.
bench: packages
	cargo bench --no-run
	cargo bench --bench xts -- --warm-up-time 0.2 --measurement-time 1 --sample-size 20
	cargo bench --bench datapath
	cargo bench --bench ceiling
	cargo bench --bench instructions

packages:
	@.ci/install-packages
