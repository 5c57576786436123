//! Plaintext above, ciphertext below.
