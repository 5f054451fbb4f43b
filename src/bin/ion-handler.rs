//! `ion-handler`: modules of older Ion where nothing can be mounted. The room `handler-shim` is all
//! of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    handler_shim::cli::main()
}
