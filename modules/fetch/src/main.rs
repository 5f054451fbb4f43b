//! The program `ion-fetch`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ion_fetch::cli::run()
}
