//! Standard output, for texts that must be whole or be an error.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use super::CliError;

/// Writes a text to standard output without a buffer in between: it may hold a key, and a buffer
/// would keep a copy.
pub fn print(text: &str) -> Result<(), CliError> {
    standard_output().and_then(|mut output| output.write_all(text.as_bytes())).map_err(CliError::Output)
}

/// Standard output as a file of its own.
pub fn standard_output() -> io::Result<File> {
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}
