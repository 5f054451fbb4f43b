//! `ion-handler`: runs modules of older Ion where nothing can be mounted. All of its code is in the
//! crate `handler-shim`.

use std::process::ExitCode;

fn main() -> ExitCode {
    handler_shim::cli::main()
}
