//! Ciphers, key derivation and locked memory: everything that touches key bytes.
