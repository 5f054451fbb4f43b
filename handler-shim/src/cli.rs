//! The command `ion-handler`: older Ion's handler, with its command line.

mod settings;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};
use ion_model::errors::error_chain;
use ion_model::event::{Event, is_event_type};
use ion_model::id::{CorrelationId, EventId};
use ion_stores::{Collection, DataPlane};

use self::settings::{Arguments, HandlerAction, HandlerSettings};
use crate::commit::commit;
use crate::development::{Dump, make_first_event};
use crate::folder::ModuleFolder;
use crate::prepare::prepare;
use crate::{HandlerError, HandlerWork};

/// Why the command failed: one line for people.
#[derive(Debug)]
struct Failure(String);

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error_chain(&error))
    }
}

/// Runs the command `ion-handler`.
pub fn main() -> ExitCode {
    ion_system::sys::forbid_inspection();
    let matches = Arguments::command().get_matches();
    let settings = Arguments::from_arg_matches(&matches)
        .map_err(Failure::from)
        .and_then(|arguments| Ok(HandlerSettings::resolve(arguments, &matches)?));
    ion_system::environment::take_credentials();
    let outcome = settings.and_then(|settings| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let outcome = runtime.block_on(run_command(&settings));
        // A task that waits for a dead store must not delay the command's end.
        runtime.shutdown_timeout(std::time::Duration::from_secs(2));
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(text)) => {
            print_message(&text);
            ExitCode::from(1)
        }
    }
}

async fn run_command(settings: &HandlerSettings) -> Result<(), Failure> {
    if settings.print_config {
        print_line(&format!("{:#}", settings.printable()));
    }
    let Some(action) = settings.action else {
        if settings.print_config {
            return Ok(());
        }
        return Err(Failure("--action is missing: --action=prepare or --action=commit".into()));
    };
    if !is_event_type(&settings.module) {
        return Err(Failure(format!(
            "--context.name is {:?}: a module's name is needed, of letters, digits, '.', '_' and \
             '-'",
            settings.module
        )));
    }
    let dump = settings.development.as_ref().map(|base| Dump::new(base, &settings.module));
    let plane = match &dump {
        Some(dump) => dump.open_stores().await?,
        None => settings.stores.open().await?,
    };
    let done = run_action(settings, action, &plane, dump.as_ref()).await;
    plane.documents.close().await;
    done
}

async fn run_action(
    settings: &HandlerSettings,
    action: HandlerAction,
    plane: &DataPlane,
    dump: Option<&Dump>,
) -> Result<(), Failure> {
    let folder = ModuleFolder::new(&settings.base_dir);
    let work = HandlerWork {
        module: settings.module.clone(),
        event: find_or_make_event(settings, action, plane, &folder).await?,
        emits: settings.emits.clone(),
        limits: settings.limits,
        deadline: settings.deadline,
    };
    match action {
        HandlerAction::Prepare => {
            let prepared = prepare(plane, &folder, &work, settings.urls).await?;
            if let Some(dump) = dump {
                dump.write_prepared(&work.event)?;
            }
            tracing::info!(event = %work.event.id, files = prepared.files, "prepared");
        }
        HandlerAction::Commit => {
            let committed = commit(plane, &folder, &work).await?;
            if let Some(dump) = dump {
                dump.write_committed(&committed)?;
            }
            for event in &committed.events {
                print_line(&format!("{}  {}", event.event_type, event.id));
            }
            tracing::info!(event = %work.event.id, events = committed.events.len(), "committed");
        }
    }
    Ok(())
}

/// Finds the event that the module works on, or makes it in development mode.
async fn find_or_make_event(
    settings: &HandlerSettings,
    action: HandlerAction,
    plane: &DataPlane,
    folder: &ModuleFolder,
) -> Result<Event, Failure> {
    let development = settings.development.is_some();
    // In development mode the first module of a pipeline has no event; its commit continues with
    // the event that prepare made.
    let noted = || {
        folder
            .read_note()
            .filter(|_| development && action == HandlerAction::Commit)
            .map(|note| note.event_id)
    };
    let Some(id) = settings.event_id.clone().map(EventId::new).or_else(noted) else {
        if development && action == HandlerAction::Prepare {
            return Ok(make_first_event(
                plane,
                folder,
                None,
                correlation_id(settings),
                &settings.limits,
            )
            .await?);
        }
        return Err(Failure("--context.eventid is missing: the id of the event to work on".into()));
    };
    let found = plane.documents.get_as::<Event>(Collection::Events, id.as_str()).await;
    match found.map_err(HandlerError::from)? {
        Some(event) => {
            let of = event.context.correlation_id.as_str();
            match &settings.correlation_id {
                Some(given) if given != of => Err(Failure(format!(
                    "event {id} is of correlation {of}, but --context.correlationid is {given}; \
                     correct the flag or the event's id"
                ))),
                _ => Ok(event),
            }
        }
        None if development && action == HandlerAction::Prepare => {
            tracing::info!(
                event = %id,
                "there is no such event yet: what is in in/data becomes the event"
            );
            Ok(make_first_event(
                plane,
                folder,
                Some(id),
                correlation_id(settings),
                &settings.limits,
            )
            .await?)
        }
        None if development => {
            Err(Failure(format!("there is no event {id} in development mode; run prepare first")))
        }
        None => Err(Failure(format!(
            "there is no event {id} in {}; set ION_DOCUMENTS (or ION_HOME) to where the events are",
            settings.stores.documents_url()
        ))),
    }
}

fn correlation_id(settings: &HandlerSettings) -> Option<CorrelationId> {
    settings.correlation_id.clone().map(CorrelationId::new)
}

/// Prints a result. Ignores a closed output, because the work is done.
fn print_line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints why the command failed, or a warning about its arguments.
fn print_message(text: &str) {
    let _ = writeln!(std::io::stderr(), "ion-handler: {text}");
}
