//! `ion completions` and `ion man`.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};

use crate::{Cli, CommandResult, CommandVerdict, output};

/// Print command-line completions for a shell
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ion completions bash > /etc/bash_completion.d/ion")]
pub(crate) struct CompletionArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// Write the man pages
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ion man /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// The folder to write them to
    #[arg(default_value = ".")]
    folder: PathBuf,
}

pub(crate) fn print_completions(args: &CompletionArgs) -> CommandResult {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ion", &mut text);
    output::print_raw(&text);
    Ok(CommandVerdict::Well)
}

pub(crate) fn write_man_pages(args: &ManArgs) -> CommandResult {
    std::fs::create_dir_all(&args.folder)?;
    clap_mangen::generate_to(Cli::command(), &args.folder)?;
    Ok(CommandVerdict::Well)
}
