//! Fetching images by `skopeo`: one fetch of each image at a time, with a timeout, whatever a
//! registry does.
//!
//! # How it works
//! A job that needs an image which is not here takes the lock of the image's note
//! (`refs/<hash>.lock`) and fetches the image. Other jobs, of this process or of another one with
//! the same home, wait for the lock. They then find the image, or the reason why it could not be
//! fetched. A thread starts `skopeo`, watches it and lives as long as it does. The kernel kills
//! `skopeo` when that thread ends, and so also when the daemon ends, for whatever reason.

use std::fs::File;
use std::io::{self, PipeReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ion_jobs::pipeline::ImageReference;
use ion_model::text::cut;
use ion_system::sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::collect::disk_bytes;
use super::{ImageError, LOCK, lock_if_unused, run_blocking, with_suffix};

/// The error text when there is no registry client.
const NO_SKOPEO: &str = "there is no skopeo; install it with `apt-get install skopeo`, or name a \
                         folder in the OCI layout (oci:FOLDER)";

/// How long fetching an image may take.
const TIME_MAX: Duration = Duration::from_secs(30 * 60);

/// How long a registry may send nothing. A longer wait holds a job's place for a registry that
/// hangs; a shorter one gives up a slow registry.
const SILENCE_MAX: Duration = Duration::from_secs(2 * 60);

/// How often progress is checked.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How often a waiting job checks whether another one has fetched the image.
const WAIT_EVERY: Duration = Duration::from_millis(100);

/// The most bytes of the client's last line that an error quotes.
const WORDS_MAX: usize = 1000;

/// The most bytes of the client's output that are read.
const OUTPUT_MAX: u64 = 64 << 10;

/// The variables that name a registries file, for podman and related tools; `skopeo` itself takes a
/// flag instead.
const REGISTRIES_FILE: [&str; 3] =
    ["CONTAINERS_REGISTRIES_CONF", "REGISTRIES_CONFIG_PATH", "REGISTRIES_CONFIG"];

/// The registry client.
#[derive(Debug)]
pub(super) struct Fetch {
    /// The client's environment: its `PATH`, the credentials for registries, and the proxies.
    env: Vec<(String, String)>,
    silence_max: Duration,
    time_max: Duration,
}

/// The right to fetch one image, until it is dropped.
pub(super) struct FetchLock {
    lock: File,
    /// Whether another job held the right while this one waited.
    pub(super) waited: bool,
}

impl FetchLock {
    /// Takes the right to fetch the image that will be noted at `note`. Waits while another job
    /// holds it.
    pub(super) async fn take(
        note: &Path,
        reference: &ImageReference,
        say: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<Self, ImageError> {
        let mut waited = false;
        loop {
            let note = note.to_owned();
            let lock = run_blocking(move || {
                let refs = note.parent().unwrap_or(Path::new("."));
                std::fs::create_dir_all(refs).map_err(ImageError::file(refs))?;
                lock_if_unused(&note)
            });
            if let Some(lock) = lock.await? {
                return Ok(Self { lock, waited });
            }
            if !waited {
                say(&format!(
                    "waits for image {reference}, which is being fetched for another job"
                ));
            }
            waited = true;
            tokio::time::sleep(WAIT_EVERY).await;
        }
    }

    /// Returns why the previous holder of the lock could not fetch the image.
    pub(super) fn previous_failure(&self, note: &Path) -> Option<String> {
        let words = std::fs::read_to_string(with_suffix(note, LOCK)).ok();
        words.filter(|words| self.waited && !words.is_empty())
    }

    /// Writes the reason of a failure into the lock file, for the jobs that wait; empty words mark
    /// a new try.
    pub(super) fn write_failure(&mut self, words: &str) {
        let left = self.lock.set_len(0).and_then(|()| {
            self.lock.seek(SeekFrom::Start(0))?;
            self.lock.write_all(words.as_bytes())
        });
        if let Err(error) = left {
            tracing::warn!(
                %error,
                "the reason of a failed image fetch cannot be saved for the jobs that wait for it"
            );
        }
    }
}

/// How the client ended.
enum ClientEnd {
    Well,
    Badly(String),
    /// It was killed: nothing had come for long (`Silent`), or its time was over (`Late`).
    Silent,
    Late,
}

impl Fetch {
    pub(super) fn new(env: Vec<(String, String)>) -> Self {
        Self { env, silence_max: SILENCE_MAX, time_max: TIME_MAX }
    }

    /// Lets `skopeo` copy an image into the folder `to`. Dropping the future ends the copying.
    pub(super) async fn copy(
        &self,
        from: &str,
        reference: &ImageReference,
        to: &Path,
    ) -> Result<(), ImageError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| ImageError::NotFetched(format!("{what}: {error}"))
        };
        let (dropped, held) = io::pipe().map_err(failed("skopeo cannot be watched"))?;
        let words = tempfile::tempfile().map_err(failed("skopeo's words cannot be kept"))?;
        let command = self.build_command(
            from,
            to,
            words.try_clone().map_err(failed("skopeo's words cannot be kept"))?,
        );
        // A file of this machine may be read for long before anything is written.
        let silence_max = match reference {
            ImageReference::Registry(_) => self.silence_max,
            _ => self.time_max,
        };
        let (to, time_max) = (to.to_owned(), self.time_max);
        let ended = run_blocking(move || {
            let child = start_client(command).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => ImageError::NotFetched(NO_SKOPEO.into()),
                _ => failed("skopeo cannot be started")(error),
            })?;
            wait_for_client(child, words, &dropped, &to, silence_max, time_max)
                .map_err(failed("skopeo cannot be watched"))
        });
        let ended = ended.await;
        drop(held);
        let because = match ended {
            Ok(ClientEnd::Well) => return Ok(()),
            Ok(ClientEnd::Badly(words)) => format!("skopeo: {words}"),
            Ok(ClientEnd::Silent) => {
                format!("the registry has sent nothing for {} seconds", silence_max.as_secs())
            }
            Ok(ClientEnd::Late) => format!("skopeo was not done in {} seconds", time_max.as_secs()),
            Err(ImageError::NotFetched(words)) => words,
            Err(error) => return Err(error),
        };
        Err(ImageError::NotFetched(format!("image {reference} cannot be fetched: {because}")))
    }

    fn build_command(&self, from: &str, to: &Path, words: File) -> Command {
        #[expect(clippy::disallowed_methods, reason = "the door for fetching images")]
        let mut command = Command::new("skopeo");
        let variable =
            |name: &str| self.env.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        if let Some(file) = REGISTRIES_FILE.into_iter().find_map(variable) {
            command.args(["--registries-conf", file]);
        }
        command
            .args(["copy", "--quiet", "--retry-times", "2", from])
            .arg(format!("oci:{}", to.display()))
            .env_clear()
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(words);
        command
    }
}

/// Starts the client. The kernel kills it when this thread ends.
fn start_client(mut command: Command) -> io::Result<Child> {
    sys::kill_when_thread_ends(&mut command);
    command.spawn()
}

/// Waits for the client's end. Kills the client when nothing comes any more, when its time is over,
/// or when the caller has dropped its future.
fn wait_for_client(
    mut child: Child,
    mut words: File,
    dropped: &PipeReader,
    to: &Path,
    silence_max: Duration,
    time_max: Duration,
) -> io::Result<ClientEnd> {
    let pid = Pid::from_raw(child.id().cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let begun = Instant::now();
    let (mut moved, mut bytes) = (begun, 0);
    let killed = loop {
        let mut events =
            [PollFd::new(&process, PollFlags::IN), PollFd::new(dropped, PollFlags::IN)];
        let _ = poll(&mut events, Some(&LOOK_EVERY));
        if !events[0].revents().is_empty() {
            break None;
        }
        let now = Instant::now();
        let there = disk_bytes(to).unwrap_or(bytes);
        if there != bytes {
            (moved, bytes) = (now, there);
        }
        if !events[1].revents().is_empty() || now - begun >= time_max {
            break Some(ClientEnd::Late);
        }
        if now - moved >= silence_max {
            break Some(ClientEnd::Silent);
        }
    };
    if let Some(killed) = killed {
        child.kill()?;
        child.wait()?;
        return Ok(killed);
    }
    if child.wait()?.success() {
        return Ok(ClientEnd::Well);
    }
    let mut output = vec![];
    words.seek(SeekFrom::Start(0))?;
    words.take(OUTPUT_MAX).read_to_end(&mut output)?;
    let output = String::from_utf8_lossy(&output);
    // The last line is about the last try; time and level stand before its message.
    let last = output.trim().lines().next_back().unwrap_or_default();
    let last = last.split_once("msg=").map_or(last, |(_, words)| words.trim_matches('"'));
    Ok(ClientEnd::Badly(cut(last, WORDS_MAX).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// C11.
    #[tokio::test]
    async fn a_registry_that_takes_calls_and_never_answers_is_given_up_by_name() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let name = format!("{}/tools/module:1", silent.local_addr().unwrap());
        let env = vec![("PATH".to_owned(), std::env::var("PATH").unwrap())];
        let fetch = Fetch { silence_max: Duration::from_secs(1), ..Fetch::new(env) };
        let to = tempfile::tempdir().unwrap();
        let reference = ImageReference::Registry(name.clone());
        let error =
            fetch.copy(&format!("docker://{name}"), &reference, to.path()).await.unwrap_err();
        let is =
            format!("image {name} cannot be fetched: the registry has sent nothing for 1 seconds");
        assert_eq!(error.to_string(), is);
    }

    /// C6.
    #[tokio::test]
    async fn those_who_wait_for_an_image_share_its_failure_and_whoever_comes_later_tries_again() {
        let home = tempfile::tempdir().unwrap();
        let (note, image) =
            (home.path().join("refs/note"), ImageReference::Registry("tools/module:1".into()));
        let mut first =
            FetchLock::take(&note, &image, &|words| panic!("nobody is before it: {words}"))
                .await
                .unwrap();
        first.write_failure("");
        let (sender, mut words_of_second) = tokio::sync::mpsc::channel(1);
        let say = |words: &str| sender.try_send(words.to_owned()).unwrap();
        let waits = async {
            let second = FetchLock::take(&note, &image, &say).await.unwrap();
            second.previous_failure(&note)
        };
        let fails = async {
            let words = words_of_second.recv().await.unwrap();
            assert_eq!(
                words,
                "waits for image tools/module:1, which is being fetched for another job"
            );
            first.write_failure("no such image");
            drop(first);
        };
        let (failure, ()) = tokio::join!(waits, fails);
        assert_eq!(failure.as_deref(), Some("no such image"));
        let later = FetchLock::take(&note, &image, &|words| panic!("nobody is before it: {words}"))
            .await
            .unwrap();
        assert_eq!(later.previous_failure(&note), None);
    }
}
