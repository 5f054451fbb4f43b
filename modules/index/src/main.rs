//! The program `ion-index`: flags, signals and exit statuses. The work is in the library.

mod cli;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use cli::{CheckArgs, RunArgs, Task};
use ion_index::{IndexError, check, error_chain, run};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The exit status of a command line that cannot be carried out.
const WRONG_USAGE: u8 = 2;

/// The exit status of a program that SIGTERM has ended.
const STOPPED: u8 = 143;

/// How long a file that does not answer may hold up the end of the program.
const END_WAIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let task = Task::parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let filter = EnvFilter::try_from_env("ION_LOG").unwrap_or_else(|_| "ion_index=info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return fail(&format!("no threads can be started: {error}")),
        };
    let status = match task {
        Task::Run(args) => runtime.block_on(run_job(args)),
        Task::Check(args) => runtime.block_on(check_server(args)),
    };
    runtime.shutdown_timeout(END_WAIT);
    status
}

async fn run_job(args: RunArgs) -> ExitCode {
    let stop = CancellationToken::new();
    match signal(SignalKind::terminate())
        .and_then(|term| Ok((term, signal(SignalKind::interrupt())?)))
    {
        Ok((mut terminate, mut interrupt)) => {
            let stop = stop.clone();
            tokio::spawn(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                stop.cancel();
            });
        }
        Err(error) => return fail(&format!("signals cannot be received: {error}")),
    }
    match run::run(args.into_settings(), stop).await {
        Ok(report) => print_line(&report.to_string(), ExitCode::SUCCESS),
        Err(error @ IndexError::Stopped) => {
            fail(&error.to_string());
            ExitCode::from(STOPPED)
        }
        Err(error @ IndexError::Setting(_)) => {
            fail(&error.to_string());
            ExitCode::from(WRONG_USAGE)
        }
        Err(error) => fail(&error_chain(&error)),
    }
}

async fn check_server(args: CheckArgs) -> ExitCode {
    let CheckArgs { server, index, templates, json } = args;
    let findings = check::check(&server.into_settings(false), &index, &templates).await;
    let is_well = findings.iter().all(|finding| finding.good || !finding.needed);
    let status = if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if json {
        let text = serde_json::to_string_pretty(&findings).expect("findings are JSON");
        return print_line(&text, status);
    }
    let line = |finding: &check::Finding| {
        let mark = match (finding.good, finding.needed) {
            (true, _) => "good",
            (false, false) => "so-so",
            (false, true) => "bad",
        };
        format!("{:<12} {mark:<5}  {}", finding.what, finding.text)
    };
    print_line(&findings.iter().map(line).collect::<Vec<_>>().join("\n"), status)
}

/// Prints a text to stdout. A reader that has gone is no failure.
fn print_line(text: &str, status: ExitCode) -> ExitCode {
    let _ = writeln!(std::io::stdout(), "{text}");
    status
}

fn fail(reason: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "ion-index: {reason}");
    ExitCode::FAILURE
}
