//! `ion`: the command.

mod cancel;
mod completions;
mod csi;
mod dead;
mod doctor;
mod event;
mod files;
mod find;
mod gateway;
mod gc;
mod job;
mod list;
mod logging;
mod metrics;
mod module;
mod mount;
mod output;
mod run;
mod service;
mod settings;
mod source;
mod spans;
mod trace;
mod up;
mod usage;
mod wait;

use std::process::ExitCode;
use std::sync::PoisonError;

use clap::{Parser, Subcommand};
use futures_util::future::join_all;

use crate::settings::{CommandSettings, Global};
use crate::spans::Exporter;

/// Runs data-processing pipelines whose modules only read and write files.
///
/// A module is any program. For each event it subscribes to, Ion starts a job of it with a
/// filesystem at /ion: the event's files in /ion/in, a place for results in /ion/out. Closing a
/// file in /ion/out/events commits the files it names and publishes an event, which starts the next
/// modules.
#[derive(Debug, Parser)]
#[command(
    name = "ion",
    version,
    after_help = "Examples:
  ion up examples/words/pipeline.yaml                 run a pipeline's modules on this machine
  ion event create new_text --file README.md --wait   create an event, and wait for all the work it starts
  ion trace                                           show what came of it
  ion mount /tmp/plane                                browse everything as files"
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: IonCommand,
}

#[derive(Debug, Subcommand)]
enum IonCommand {
    Up(up::UpArgs),
    Dispatch(up::DispatchArgs),
    Relay(up::RelayArgs),
    Gateway(gateway::GatewayArgs),
    Csi(csi::CsiArgs),
    Run(run::RunArgs),
    #[command(subcommand)]
    Event(event::EventCommand),
    #[command(subcommand)]
    Module(module::ModuleCommand),
    #[command(subcommand)]
    Source(source::SourceCommand),
    #[command(subcommand)]
    Job(job::JobCommand),
    Trace(trace::TraceArgs),
    Usage(usage::UsageArgs),
    #[command(subcommand)]
    Find(find::FindCommand),
    Cancel(cancel::CancelArgs),
    #[command(subcommand)]
    Dead(dead::DeadCommand),
    Mount(mount::MountArgs),
    Check(gc::CheckArgs),
    Gc(gc::GcArgs),
    Doctor(doctor::DoctorArgs),
    Completions(completions::CompletionArgs),
    Man(completions::ManArgs),
}

impl IonCommand {
    /// Returns whether the command makes spans: it runs jobs, or publishes their events.
    fn has_spans(&self) -> bool {
        matches!(self, Self::Up(_) | Self::Dispatch(_) | Self::Relay(_) | Self::Run(_))
    }
}

/// Why a command could not do its work, in one line for people.
#[derive(Debug)]
pub(crate) struct CommandFailure(pub(crate) String);

impl<E: std::error::Error> From<E> for CommandFailure {
    fn from(error: E) -> Self {
        Self(ionfs::errors::error_chain(&error))
    }
}

/// The result of a command: a verdict on the work it looked at, or why the command itself failed.
pub(crate) type CommandResult = Result<CommandVerdict, CommandFailure>;

/// The exit code of a command that could do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandVerdict {
    /// Exit code 0.
    Well,
    /// Exit code 1: the command worked, and the work it looked at failed.
    Failed,
}

fn main() -> ExitCode {
    ionfs::sys::close_descriptors_on_exec();
    ionfs::sys::restore_child_signal();
    if std::env::args_os().nth(1).is_some_and(|word| word == dispatcher::sandbox::INIT_WORD) {
        dispatcher::sandbox::run_fork_server();
    }
    ionfs::sys::forbid_inspection();
    ionfs::sys::map_large_buffers();
    ionfs::sys::raise_descriptor_limit();
    let cli = Cli::parse();
    ionfs::environment::take_credentials();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(run_cli(cli));
            // A task that waits for an unavailable store must not keep the command from ending.
            runtime.shutdown_timeout(std::time::Duration::from_secs(2));
            outcome
        }
        Err(error) => Err(error.into()),
    };
    let outcome = outcome.unwrap_or_else(|CommandFailure(text)| {
        output::print_message(&text);
        CommandVerdict::Failed
    });
    let printed = output::finish().inspect_err(|error| {
        output::print_message(&format!("the result could not be written: {error}"));
        let _ = output::finish();
    });
    match (outcome, printed) {
        (CommandVerdict::Well, Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    }
}

async fn run_cli(cli: Cli) -> CommandResult {
    let exporter = if cli.command.has_spans() { Exporter::from_environment()? } else { None };
    logging::start(cli.global.verbose, exporter.as_ref())?;
    let settings = CommandSettings::resolve(cli.global)?;
    let opened = settings.opened.clone();
    let outcome = run_command(settings, cli.command).await;
    let opened = std::mem::take(&mut *opened.lock().unwrap_or_else(PoisonError::into_inner));
    join_all(opened.iter().map(|documents| documents.close())).await;
    if let Some(exporter) = exporter {
        exporter.finish().await;
    }
    outcome
}

async fn run_command(settings: CommandSettings, command: IonCommand) -> CommandResult {
    match command {
        IonCommand::Up(args) => up::run(settings, args).await,
        IonCommand::Dispatch(args) => up::dispatch(settings, args).await,
        IonCommand::Relay(args) => up::relay(&settings, args).await,
        IonCommand::Gateway(args) => gateway::run(&settings, args).await,
        IonCommand::Csi(args) => csi::run(&settings, args).await,
        IonCommand::Run(args) => run::run(&settings, args).await,
        IonCommand::Event(command) => event::run(&settings, command).await,
        IonCommand::Module(command) => module::run(&settings, command).await,
        IonCommand::Source(command) => source::run(&settings, command).await,
        IonCommand::Job(command) => job::run(&settings, command).await,
        IonCommand::Trace(args) => trace::run(&settings, args).await,
        IonCommand::Usage(args) => usage::run(&settings, args).await,
        IonCommand::Find(command) => find::run(&settings, command).await,
        IonCommand::Cancel(args) => cancel::run(&settings, args).await,
        IonCommand::Dead(command) => dead::run(&settings, command).await,
        IonCommand::Mount(args) => mount::run(&settings, args).await,
        IonCommand::Check(args) => gc::check(&settings, args).await,
        IonCommand::Gc(args) => gc::collect(&settings, args).await,
        IonCommand::Doctor(args) => doctor::run(&settings, args).await,
        IonCommand::Completions(args) => completions::print_completions(&args),
        IonCommand::Man(args) => completions::write_man_pages(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    use super::*;

    /// Returns the command lines of a text: those on lines of their own, and those in the code
    /// spans of its sentences.
    fn find_command_lines(text: &str) -> (Vec<String>, Vec<String>) {
        let own_lines = text.lines().map(str::trim_start).filter(|line| line.starts_with("ion "));
        let inline = text.split('`').skip(1).step_by(2).filter(|code| {
            code.starts_with("ion ") && !code.contains("->") && !code.contains('\n')
        });
        (own_lines.map(str::to_owned).collect(), inline.map(str::to_owned).collect())
    }

    /// Splits a command line into its words, up to the first shell operator or comment.
    fn split_words(line: &str) -> Vec<String> {
        // In a list of commands, two or more spaces separate a command from its explanation.
        let line = line.split("  ").next().unwrap_or_default().trim_end_matches('\\');
        let words =
            shlex::split(line).unwrap_or_else(|| panic!("{line:?} is not a shell command line"));
        let ends = |word: &String| {
            matches!(word.as_str(), "|" | "&" | ">" | "2>" | "\\" | "&&") || word.starts_with('#')
        };
        words.into_iter().take_while(|word| !ends(word)).collect()
    }

    /// Collects the examples from the help texts of a command and its subcommands.
    fn collect_examples(command: &clap::Command, found: &mut String) {
        found.extend(command.get_after_help().map(|text| format!("{text}\n")));
        command.get_subcommands().for_each(|command| collect_examples(command, found));
    }

    #[test]
    fn every_command_line_of_the_manual_is_one() {
        let mut pages = vec![(String::from("ion help"), String::new())];
        collect_examples(&Cli::command(), &mut pages[0].1);
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in ["", "docs", "docs/stores", "examples/words", "examples/video"] {
            for entry in std::fs::read_dir(root.join(folder)).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|ext| ext == "md") {
                    pages.push((
                        path.display().to_string(),
                        std::fs::read_to_string(&path).unwrap(),
                    ));
                }
            }
        }
        let mut lines = 0;
        for (page, text) in pages {
            let (own_lines, inline) = find_command_lines(&text);
            lines += own_lines.len();
            for (line, is_whole) in own_lines
                .iter()
                .map(|line| (line, !line.ends_with('\\')))
                .chain(inline.iter().map(|line| (line, false)))
            {
                let words = split_words(line);
                let Err(error) = Cli::try_parse_from(&words) else { continue };
                let is_part = matches!(
                    error.kind(),
                    ErrorKind::MissingRequiredArgument
                        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                        | ErrorKind::MissingSubcommand
                        | ErrorKind::InvalidValue
                );
                let is_help = words[1] == "help" || error.kind() == ErrorKind::DisplayHelp;
                assert!(is_help || (is_part && !is_whole), "{page}: {words:?}: {error}");
            }
        }
        assert!(lines > 40, "{lines}");
    }
}
