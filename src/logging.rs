//! What this process logs, and the spans it exports.

use ionfs::text::write_field;
use tracing::field::Field;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::CommandFailure;
use crate::output::LogWriter;
use crate::settings::wants_colours;
use crate::spans::Exporter;

/// Starts the log on stderr, and sends spans to the exporter, if there is one. `ION_LOG` says what
/// is logged; without it, each `--verbose` raises Ion's own level by one.
pub(crate) fn start(verbose: u8, exporter: Option<&Exporter>) -> Result<(), CommandFailure> {
    let level = ["warn", "info", "debug"][usize::from(verbose.min(2))];
    let filter = EnvFilter::try_from_env("ION_LOG").unwrap_or_else(|_| {
        // Ion's crates all have names that begin with `ion`.
        EnvFilter::new(format!("warn,lapin=off,ion={level}"))
    });
    // The log has lines only; spans go to the exporter.
    let filter = filter.add_directive(format!("{}=off", ionfs::spans::TARGET).parse()?);
    let log = tracing_subscriber::fmt::layer()
        .with_writer(|| LogWriter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()) && wants_colours())
        .with_target(false)
        .fmt_fields(escaped_fields())
        .with_filter(filter);
    tracing_subscriber::registry().with(log).with(exporter.map(Exporter::layer)).init();
    Ok(())
}

/// Writes the fields of a log line. Modules, requests and messages choose some of them, so each
/// stays in one line and a long one is cut.
fn escaped_fields() -> impl for<'w> FormatFields<'w> + 'static {
    let field = |out: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug| {
        if field.name() != "message" {
            write!(out, "{}=", field.name())?;
        }
        write_field(out, value)
    };
    debug_fn(field).delimited(" ")
}
