//! The `sealblk` command.

fn main() -> std::process::ExitCode {
    sealblk::cli::run()
}
