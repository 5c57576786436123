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

/// Writes a text that others had a say in: it does no more to a terminal than to put text on it.
pub fn show(text: &str) -> Result<(), CliError> {
    print(&printable(text))
}

/// A text without what a terminal would obey, save for the ends of lines.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Standard output as a file of its own.
pub fn standard_output() -> io::Result<File> {
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_told_nothing_but_text() {
        assert_eq!(printable("node \x1b[2Jä\r\n\u{9b}1m\n"), "node \u{fffd}[2Jä\u{fffd}\n\u{fffd}1m\n");
    }
}
