//! The command line: one file a subcommand, no logic of its own.
