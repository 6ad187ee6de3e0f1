//! The program `quittance`: everything it can do is in `app::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    app::cli::main()
}
