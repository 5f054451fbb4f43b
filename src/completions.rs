//! `ion completions` and `ion man`.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};

use crate::{Cli, Outcome, Verdict, output};

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

pub(crate) fn completions(args: &CompletionArgs) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ion", &mut text);
    output::raw(&text);
    Ok(Verdict::Well)
}

pub(crate) fn man(args: &ManArgs) -> Outcome {
    std::fs::create_dir_all(&args.folder)?;
    clap_mangen::generate_to(Cli::command(), &args.folder)?;
    Ok(Verdict::Well)
}
