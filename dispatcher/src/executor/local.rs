//! Jobs on this machine: a filesystem and a process tree in namespaces of their own.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use ionfs::cache::Reader;
use ionfs::checksum::BLOCK;
use ionfs::clock;
use ionfs::commit::{Origin, Rejection, files_of};
use ionfs::errors::chain;
use ionfs::event::{Context, DocumentType, FileEntry};
use ionfs::fs::job::{JobSpec, JobTree, Names, Older, OpenError, Outcome};
use ionfs::mount::{Mounted, mount_at, serve};
use ionfs::node::{Node, job_dir, live_log};
use ionfs::record::{AttemptEnd, CommitMode, LogRecord};
use ionfs::spans;
use ionfs::stores::{Collection, StoreError, encode};
use ionfs::upload::{empty_file, store_path};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, info_span};

use crate::chain::{Chains, End, Input, Run, Stored};
use crate::pipeline::{ANY_TYPE, Api, Module};

use super::sandbox::{self, Command, Exit, ForkServer, Mode, Sandbox, SandboxError};
use super::sidecar::{Sidecar, Word};
use super::{Ended, Executor, OutputLine, OutputSink, Start, Stop, logs_below};

/// Between SIGTERM and SIGKILL. Shorter cuts off modules that tidy up; longer delays every timeout and shutdown.
const GRACE: Duration = Duration::from_secs(5);

/// Tries to read what a job begins with and to store its output, and the wait between them. The stores' own deadlines come on top.
const STORE_TRIES: u32 = 20;
const STORE_WAIT: Duration = Duration::from_secs(1);

/// How long a killed job may take to be gone, and its mount with it.
const GONE_WAIT: Duration = Duration::from_secs(10);

/// Bytes of output kept of one attempt. A module that says more is cut off there; it goes on.
const LOG_MAX: u64 = 256 << 20;

/// Bytes of output that wait while the disk does not take them.
const PENDING_MAX: usize = 1 << 20;

/// Bytes of a line shown live.
const LINE_MAX: usize = 4096;

/// What the local executor needs to know.
#[derive(Clone, Debug)]
pub struct LocalSettings {
    /// The program that is `job-init`: `ion` itself.
    pub program: PathBuf,
    /// What every module's environment begins with: `PATH`, `HOME` and the like. No credential.
    pub env: Vec<(String, String)>,
    /// Whether to give jobs namespaces of their own where the kernel allows it.
    pub namespaces: Namespaces,
}

/// Whether jobs get namespaces of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// Where the kernel allows it.
    WherePossible,
    /// Never: `ION_DIR` says where a job's tree is.
    Never,
}

/// Runs jobs as processes of this machine.
#[derive(Debug)]
pub struct LocalExecutor {
    node: Arc<Node>,
    settings: LocalSettings,
    server: Arc<ForkServer>,
    mode: Mode,
    chains: Arc<Chains>,
    output: Option<OutputSink>,
}

impl LocalExecutor {
    /// Finds out what separates jobs here, and why not more.
    pub async fn new(node: Arc<Node>, settings: LocalSettings, output: Option<OutputSink>) -> Self {
        let server = Arc::new(ForkServer::new(&settings.program));
        let (mode, refused) = match settings.namespaces {
            Namespaces::WherePossible => sandbox::best_mode(&server).await,
            Namespaces::Never => (Mode::Plain, vec![]),
        };
        for (mode, reason) in refused {
            tracing::warn!(
                ?mode,
                reason,
                "jobs run without namespaces of their own: ION_DIR says where their tree is"
            );
        }
        let chains = Chains::new(node.clone(), server.clone(), mode, settings.env.clone());
        Self { node, settings, server, mode, chains, output }
    }

    /// What runs chains here.
    pub fn chains(&self) -> &Arc<Chains> {
        &self.chains
    }

    /// What separates jobs from this machine.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    async fn attempt(&self, start: Start, stop: watch::Receiver<Option<Stop>>) -> Ended {
        let spec = JobSpec {
            origin: origin(&start),
            event: start.event.clone(),
            gathered: start.gathered.clone(),
            older: older(&start.module),
        };
        let limits = start.module.limits.over(self.node.settings.limits);
        let mut tries = 0;
        let tree = loop {
            match JobTree::open(&self.node, spec.clone(), limits).await {
                Ok(tree) => break tree,
                // A store that is away is no failure of the module's: it is waited for, and then left to another attempt.
                Err(error @ OpenError::Store(StoreError::Unavailable { .. })) => {
                    tries += 1;
                    if tries == STORE_TRIES || stop.borrow().is_some() {
                        return Ended { end: AttemptEnd::Released, ..Ended::failed(chain(&error)) };
                    }
                    tokio::time::sleep(STORE_WAIT).await;
                }
                Err(error) => return Ended::failed(chain(&error)),
            }
        };
        let tree = Arc::new(tree);
        let commit = start.module.commit;
        let api = match start.module.api {
            Api::None => None,
            Api::Sidecar => match Sidecar::serve(tree.clone()).await {
                Ok(api) => Some(api),
                Err(error) => {
                    tree.finish().await;
                    return Ended::failed(format!("the localhost API cannot be served: {error}"));
                }
            },
        };
        let (ran, exit) = self.process(start, &tree, api.as_ref(), stop).await;
        let word = match api {
            Some(api) => api.close().await,
            None => Word::NotAsked,
        };
        let outcome = tree.finish().instrument(exit).await;
        verdict(ran.after(word), &outcome, commit)
    }

    /// Runs the links of a chain on the event's files, one after the other.
    async fn chain(&self, start: Start, mut stop: watch::Receiver<Option<Stop>>, log: &Path) -> Ended {
        let files = match files_of(&self.node.plane, &start.event).await {
            Ok(files) => files,
            Err(error) => return Ended { end: AttemptEnd::Released, ..Ended::failed(chain(&error)) },
        };
        let stored = Stored::By { attempt: start.job.attempt, guard: origin(&start).guard() };
        let Start { module, event, running, .. } = start;
        let run = Run { module: Arc::new(module), event, stored, input: contents(self.node.clone(), files) };
        let _ = running.send(());
        let cancel = CancellationToken::new();
        let running = self.chains.run(run, None, cancel.clone());
        tokio::pin!(running);
        let (stopped, (end, said)) = tokio::select! {
            ended = &mut running => (None, ended),
            why = asked(&mut stop) => {
                cancel.cancel();
                (Some(why), running.await)
            }
        };
        for (link, words) in said.iter().filter(|(_, words)| !words.is_empty()) {
            note(log, &format!("link {link} said:"));
            append(log, words);
        }
        match (end, stopped) {
            (End::Well { .. }, _) => Ended {
                end: AttemptEnd::Succeeded,
                exit_code: Some(0),
                reason: None,
                log: None,
                staged: false,
            },
            (_, Some(why)) => stopped_by(why),
            (End::Failed(failure), None) => Ended {
                end: if failure.timed_out { AttemptEnd::TimedOut } else { AttemptEnd::Failed },
                exit_code: failure.exit_code,
                ..Ended::failed(format!("link {}: {}", failure.link, failure.reason))
            },
            (End::Cancelled, None) => Ended::failed("cancelled"),
            (End::NoPlace, None) => Ended::failed("no place was free"),
            (End::Broken { reason }, None) => Ended::failed(reason),
        }
    }

    /// Runs the process; its tree is unmounted when this returns. The span began when the process ended.
    async fn process(
        &self,
        start: Start,
        tree: &JobTree,
        api: Option<&Sidecar>,
        mut stop: watch::Receiver<Option<Stop>>,
    ) -> (Ran, Span) {
        let job = &start.job;
        let plain = self.node.settings.home.join("mnt").join(format!("{}-{}", job.id, job.attempt));
        let mount_at = start.module.base_dir();
        let ion_dir = if self.mode == Mode::Plain { plain.clone() } else { mount_at.clone() };
        let command = Command {
            argv: start.module.argv(),
            env: environment(&self.settings.env, &start, &ion_dir, api),
            cwd: start.module.directory.clone(),
            mount_at: Some(mount_at),
            mode: self.mode,
            processes: tree.limits().processes,
            open_files: ionfs::sys::open_files_before(),
        };
        let begun = Instant::now();
        let mounting = info_span!(target: spans::TARGET, "mount");
        let (mut sandbox, output, mounted) =
            match self.mount(command, tree, &plain).instrument(mounting).await {
                Ok(mounted) => mounted,
                Err(reason) => return (Ran::NotStarted(reason), exit_span()),
            };
        self.node.metrics.mounts.since(begun);
        let log = live_log(&self.node.settings.home, &job.id, job.attempt);
        let sink = self.output.clone().map(|sink| (sink, job.module.clone(), job.id.short().to_owned()));
        let reading = tokio::spawn(keep_output(output, log, sink));
        let ran = match sandbox.go().await {
            Ok(()) => {
                let _ = start.running.send(());
                supervise(&mut sandbox, tree, start.module.timeout, &mut stop).await
            }
            Err(error) => Ran::NotStarted(chain(&error)),
        };
        let exit = exit_span();
        // Dropped: whatever is left is killed, and the mount goes with it.
        drop(sandbox);
        self.unmounted(mounted, &plain).await;
        // Every writer is gone, so the pipe has ended; a stuck disk must not hold the job for ever.
        if tokio::time::timeout(GONE_WAIT, reading).await.is_err() {
            tracing::warn!(job = %job.id, "the job's output did not end with it");
        }
        (ran, exit)
    }

    /// Starts the process, which waits until its tree is served.
    async fn mount(
        &self,
        command: Command,
        tree: &JobTree,
        plain: &Path,
    ) -> Result<(Sandbox, Receiver, Mounted), String> {
        let spawned = sandbox::spawn(&self.server, command).await;
        let spawned = spawned.map_err(|error| chain(&error))?;
        let mounted = match spawned.device {
            Some(device) => serve(device, tree.tree()).await,
            None => match tokio::fs::create_dir_all(plain).await {
                Ok(()) => mount_at(plain, tree.tree()).await,
                Err(error) => Err(error),
            },
        };
        let mounted = mounted.map_err(|error| format!("the filesystem cannot be mounted: {error}"))?;
        Ok((spawned.sandbox, spawned.output, mounted))
    }

    async fn unmounted(&self, mut mounted: Mounted, plain: &Path) {
        let gone = if self.mode == Mode::Plain {
            let unmount = tokio::time::timeout(GONE_WAIT, mounted.unmount()).await;
            let _ = tokio::fs::remove_dir(plain).await;
            unmount
        } else {
            tokio::time::timeout(GONE_WAIT, mounted.ended()).await
        };
        match gone {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a job's filesystem ended badly"),
            Err(_) => tracing::warn!("a job's filesystem is still mounted after its end"),
        }
    }

    /// Stores the attempt's output and the document that says where. What a person will look for is not given up because a
    /// store is away for a moment; none after [`STORE_TRIES`].
    async fn store_log(&self, context: &Context, id: &JobLog, succeeded: bool) -> Option<FileEntry> {
        for _ in 1..STORE_TRIES {
            match self.try_to_store_log(context, id, succeeded).await {
                Ok(entry) => return Some(entry),
                Err(error) => tracing::debug!(error, "a job's output is not stored yet"),
            }
            tokio::time::sleep(STORE_WAIT).await;
        }
        let last = self.try_to_store_log(context, id, succeeded).await;
        last.inspect_err(|error| tracing::error!(error, "a job's output could not be stored")).ok()
    }

    async fn try_to_store_log(
        &self,
        context: &Context,
        id: &JobLog,
        succeeded: bool,
    ) -> Result<FileEntry, String> {
        let key = format!(
            "{}/{}/{}-attempt-{}.log",
            logs_below(&context.correlation_id),
            context.event_id,
            context.name,
            id.attempt
        );
        let plane = &self.node.plane;
        let stored = match tokio::fs::metadata(&id.path).await {
            // Most jobs of some modules say nothing, and no store has to keep that.
            Ok(metadata) if metadata.len() == 0 => Ok(empty_file(key, "log".into())),
            _ => store_path(&*plane.blobs, key, "log".into(), &id.path).await,
        };
        let entry = stored.map_err(|error| chain(&error))?;
        let name = LogRecord::id(&context.name, &context.event_id, id.attempt);
        let record = LogRecord {
            id: name.clone(),
            desc: name,
            context: Context { document_type: DocumentType::ModuleLogs, ..context.clone() },
            logs: entry.clone(),
            succeeded,
            created: clock::now(),
        };
        let put = plane.documents.put(Collection::Events, encode(&record), None).await;
        put.map(|()| entry).map_err(|error| chain(&error))
    }
}

/// Where an attempt's output lies.
struct JobLog {
    attempt: u32,
    path: PathBuf,
}

#[async_trait]
impl Executor for LocalExecutor {
    async fn run(&self, start: Start, stop: watch::Receiver<Option<Stop>>) -> Ended {
        let home = &self.node.settings.home;
        let (job, attempt) = (start.job.id.clone(), start.job.attempt);
        let log = JobLog { attempt, path: live_log(home, &job, attempt) };
        let context = Context { name: start.module.name.clone(), ..start.event.context.clone() };
        if let Err(error) = prepare_log(&log.path) {
            return Ended::failed(format!("the log {} cannot be made: {error}", log.path.display()));
        }
        let mut ended = match start.module.links.is_empty() {
            true => self.attempt(start, stop).await,
            false => self.chain(start, stop, &log.path).await,
        };
        if let Some(reason) = &ended.reason {
            note(&log.path, reason);
        }
        ended.log = self.store_log(&context, &log, ended.end == AttemptEnd::Succeeded).await;
        let folder = job_dir(home, &job, attempt);
        if let Err(error) = tokio::fs::remove_dir_all(&folder).await {
            tracing::warn!(folder = %folder.display(), %error, "a job's folder could not be removed");
        }
        ended
    }
}

fn prepare_log(path: &Path) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, b"")
}

/// Ion's own word at the end of a log: why the attempt failed stands where people look first.
fn note(path: &Path, reason: &str) {
    append(path, format!("ion: {reason}\n").as_bytes());
}

fn append(path: &Path, words: &[u8]) {
    let log = std::fs::OpenOptions::new().append(true).open(path);
    if let Err(error) = log.and_then(|mut log| log.write_all(words)) {
        tracing::warn!(%error, "words could not be added to a log");
    }
}

fn origin(start: &Start) -> Origin {
    Origin {
        job_id: start.job.id.clone(),
        attempt: start.job.attempt,
        holder: start.job.holder.clone(),
        module: start.module.name.clone(),
        emits: (!start.module.emits.iter().any(|one| one == ANY_TYPE)).then(|| start.module.emits.clone()),
        commit: start.module.commit,
        parent: start.event.context.clone(),
    }
}

/// What of older Ion's ways a module asks for.
fn older(module: &Module) -> Older {
    let names = match module.api {
        Api::None => Names::Current,
        Api::Sidecar => Names::AndSecondGeneration,
    };
    Older { names, urls: module.urls }
}

/// A module's whole environment (DESIGN.md section 2).
fn environment(
    base: &[(String, String)],
    start: &Start,
    ion_dir: &Path,
    api: Option<&Sidecar>,
) -> Vec<(String, String)> {
    let ion_dir = ion_dir.display().to_string();
    let own = [
        ("ION_DIR", ion_dir.clone()),
        ("ION_EVENT_ID", start.event.id.to_string()),
        ("ION_CORRELATION_ID", start.event.context.correlation_id.to_string()),
        ("ION_MODULE", start.module.name.clone()),
        ("ION_ATTEMPT", start.job.attempt.to_string()),
        ("HANDLER_BASE_DIR", ion_dir),
    ];
    let api = api.map(Sidecar::environment).into_iter().flatten();
    let own = own.into_iter().chain(api).map(|(key, value)| (key.to_owned(), value));
    base.iter().cloned().chain(start.module.env.clone()).chain(own).collect()
}

/// From the end of a module's process until its tree is decided upon.
fn exit_span() -> Span {
    info_span!(target: spans::TARGET, "exit")
}

/// How the process part of an attempt ended.
enum Ran {
    Exited(Exit),
    /// However it ended, it had said that its work was done; the exit status, if it exited by itself.
    Done(Option<i32>),
    /// It exited well and had not said so.
    Undone,
    TimedOut(Duration),
    Stopped(Stop),
    NotStarted(String),
    Vanished(String),
}

impl Ran {
    /// What its end means, given what the module had said before. Done is done: older Ion had committed by then.
    fn after(self, word: Word) -> Self {
        match (word, self) {
            (Word::Done, Self::Exited(Exit::Code(code))) => Self::Done(Some(code)),
            (Word::Done, Self::Exited(_) | Self::TimedOut(_) | Self::Stopped(Stop::Shutdown)) => {
                Self::Done(None)
            }
            (Word::NotDone, Self::Exited(Exit::Code(0))) => Self::Undone,
            (_, ran) => ran,
        }
    }
}

/// Waits for the module's end, and brings it about when its time is up or somebody asks.
async fn supervise(
    sandbox: &mut Sandbox,
    tree: &JobTree,
    timeout: Duration,
    stop: &mut watch::Receiver<Option<Stop>>,
) -> Ran {
    let why = tokio::select! {
        exit = sandbox.wait() => return exited(exit),
        () = tokio::time::sleep(timeout) => Ran::TimedOut(timeout),
        stop = asked(stop) => Ran::Stopped(stop),
    };
    sandbox.terminate().await;
    if tokio::time::timeout(GRACE, sandbox.wait()).await.is_err() {
        sandbox.kill().await;
        // A process that waits for an answer of its filesystem dies when it has one.
        tree.stop();
        if tokio::time::timeout(GONE_WAIT, sandbox.wait()).await.is_err() {
            tracing::warn!("a killed job is not gone yet");
        }
    }
    why
}

async fn asked(stop: &mut watch::Receiver<Option<Stop>>) -> Stop {
    loop {
        if let Some(stop) = *stop.borrow_and_update() {
            return stop;
        }
        if stop.changed().await.is_err() {
            // Nobody is left to ask: only the job's own end counts.
            return std::future::pending().await;
        }
    }
}

fn exited(exit: Result<Exit, SandboxError>) -> Ran {
    match exit {
        Ok(exit) => Ran::Exited(exit),
        Err(error) => Ran::Vanished(chain(&error)),
    }
}

/// The attempt's end: exit status, no event refused, and no limit exceeded.
fn verdict(ran: Ran, outcome: &Outcome, commit: CommitMode) -> Ended {
    let exited = matches!(ran, Ran::Exited(_) | Ran::Undone);
    let first_refused = outcome.rejections.first().map(|first| refused(first, outcome.rejections.len()));
    let (end, exit_code, reason) = match ran {
        Ran::Exited(Exit::Code(0)) if first_refused.is_none() => (AttemptEnd::Succeeded, Some(0), None),
        Ran::Exited(Exit::Code(0)) => (AttemptEnd::Failed, Some(0), first_refused),
        // What was refused after that is in the log.
        Ran::Done(code) => (AttemptEnd::Succeeded, code, None),
        Ran::Undone => {
            let undone =
                "it ended and GET /done had not been answered with 200; \"api: sidecar\" waits for that";
            (AttemptEnd::Failed, Some(0), Some(first_refused.unwrap_or_else(|| undone.into())))
        }
        Ran::Exited(Exit::Code(code)) => {
            let refused = first_refused.map(|refused| format!("; {refused}")).unwrap_or_default();
            (AttemptEnd::Failed, Some(code), Some(format!("exit status {code}{refused}")))
        }
        Ran::Exited(Exit::Signal(signal)) => {
            (AttemptEnd::Failed, None, Some(format!("killed by signal {signal}")))
        }
        Ran::TimedOut(timeout) => (
            AttemptEnd::TimedOut,
            None,
            Some(format!("over its timeout of {}", humantime::format_duration(timeout))),
        ),
        Ran::Stopped(why) => {
            let Ended { end, reason, .. } = stopped_by(why);
            (end, None, reason)
        }
        Ran::NotStarted(reason) => (AttemptEnd::Failed, None, Some(reason)),
        Ran::Vanished(reason) => (AttemptEnd::Failed, None, Some(reason)),
    };
    // First of its reasons: the others follow from it.
    let (end, reason) = match (&outcome.exceeded, reason) {
        (Some(exceeded), None) if exited => (AttemptEnd::Failed, Some(exceeded.clone())),
        (Some(exceeded), Some(reason)) if exited => (end, Some(format!("{exceeded}; {reason}"))),
        (_, reason) => (end, reason),
    };
    let staged = end == AttemptEnd::Succeeded && commit == CommitMode::OnSuccess;
    Ended { end, exit_code, reason, log: None, staged }
}

/// The end of what was asked to end.
fn stopped_by(why: Stop) -> Ended {
    let (end, reason) = match why {
        Stop::Cancel => (AttemptEnd::Cancelled, "cancelled"),
        Stop::Shutdown => (AttemptEnd::Released, "its dispatcher was shut down"),
        Stop::LostLease => (AttemptEnd::Lost, "another dispatcher took it over"),
    };
    Ended { end, ..Ended::failed(reason) }
}

/// The bytes of an event's files, one after the other.
fn contents(node: Arc<Node>, files: Vec<FileEntry>) -> Input {
    let pieces = move |file: FileEntry| {
        let open = node.cache.open(&file).map(|blob| (Reader::new(blob), 0)).map_err(io::Error::other);
        stream::iter([open]).and_then(|begin| async { Ok(stream::try_unfold(begin, piece)) }).try_flatten()
    };
    stream::iter(files).map(pieces).flatten().boxed()
}

/// The next bytes of one file, and where those after them begin.
async fn piece((reader, at): (Reader, u64)) -> io::Result<Option<(Bytes, (Reader, u64))>> {
    let bytes = reader.read(at, BLOCK).await.map_err(|error| io::Error::other(chain(&*error)))?;
    let end = at + bytes.len() as u64;
    Ok((!bytes.is_empty()).then_some((bytes, (reader, end))))
}

fn refused(first: &Rejection, count: usize) -> String {
    let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
    format!("event file {:?} was rejected: {}: {}{more}", first.name, first.errno, first.reason)
}

/// Keeps a module's output as it comes, and shows it line by line to whoever watches.
async fn keep_output(mut pipe: Receiver, log: PathBuf, sink: Option<(OutputSink, String, String)>) {
    let mut kept = Kept {
        file: std::fs::OpenOptions::new().append(true).open(&log).ok(),
        length: 0,
        pending: Vec::new(),
    };
    let mut line = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let piece = match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => &buffer[..length],
        };
        kept.add(piece);
        let Some((sink, module, job)) = &sink else { continue };
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(&part[..part.len().min(LINE_MAX)]);
            if part.ends_with(b"\n") || line.len() >= LINE_MAX {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                let _ = sink.try_send(OutputLine { module: module.clone(), job: job.clone(), text });
                line.clear();
            }
        }
    }
    kept.write();
    if !kept.pending.is_empty() {
        tracing::error!(log = %log.display(), bytes = kept.pending.len(), "the end of a job's output could not be kept");
    }
}

/// A log being written. What a full disk does not take waits for a while: the module's own words about it are in
/// there, and it may make room again.
struct Kept {
    file: Option<std::fs::File>,
    length: u64,
    pending: Vec<u8>,
}

impl Kept {
    fn add(&mut self, piece: &[u8]) {
        if self.length >= LOG_MAX {
            return;
        }
        self.length += piece.len() as u64;
        if self.pending.len() < PENDING_MAX {
            self.pending.extend_from_slice(piece);
        }
        if self.length >= LOG_MAX {
            self.pending.extend_from_slice(b"\nion: more output than is kept\n");
        }
        self.write();
    }

    fn write(&mut self) {
        let Some(file) = &mut self.file else { return };
        while !self.pending.is_empty() {
            match file.write(&self.pending) {
                Ok(length) => drop(self.pending.drain(..length)),
                Err(error) => {
                    tracing::debug!(%error, "a job's output is not kept yet");
                    return;
                }
            }
        }
    }
}
