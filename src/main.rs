//! The `runsc` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    runsc::cli::main()
}
