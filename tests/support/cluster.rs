//! A real one-node Kubernetes cluster with Ion's driver, shared by the tests of one binary.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::Value;

use super::servers::{Mongo, Rabbit, S3, cache, free_port, plane};
use super::{CommandOutput, Home, ION, RunningCommand, wait_for};

/// The key that signs the tokens.
pub const KEY: &str = "a-key-of-tests-only-0123456789abcdef";

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/machine/kubernetes/cluster.sh");

/// Returns the folder of the programs that scripts/setup-kubernetes.sh builds.
fn built() -> PathBuf {
    cache().join("kubernetes")
}

/// A one-node cluster. It ends when this value is dropped, or when this process ends for any
/// reason.
pub struct Cluster {
    dir: PathBuf,
    keeper: Child,
}

impl Cluster {
    /// Starts a cluster. If no Kubernetes is built here, or this process is not root, prints that
    /// and returns none.
    pub fn start() -> Option<Self> {
        if !built().join("kubelet").exists() || !rustix::process::geteuid().is_root() {
            eprintln!(
                "skipped: no Kubernetes is built here, or this is not root: `make test-kubernetes` builds and tests it"
            );
            return None;
        }
        // The folder's path is short, because the path of a socket has a length limit.
        let dir = std::env::temp_dir().join(format!("ion-k{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut keeper = Command::new(SCRIPT)
            .arg("keep")
            .arg(&dir)
            .arg(free_port().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said.trim(), "ready", "the cluster's logs are in {}", dir.display());
        Some(Self { dir, keeper })
    }

    /// Returns a path below the cluster's folder.
    pub fn at(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// Runs a verb of the cluster's script, and returns its output.
    pub fn script(&self, verb: &str, words: &[&str]) -> String {
        let ran =
            Command::new(SCRIPT).arg(verb).arg(&self.dir).args(words).stdin(Stdio::null()).output();
        CommandOutput::of(ran.unwrap()).well().stdout
    }

    fn kubectl_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(built().join("kubectl"));
        command
            .arg("--kubeconfig")
            .arg(self.at("kubeconfig"))
            .arg("--cache-dir")
            .arg(self.at("kubectl"));
        command.args(words);
        command
    }

    pub fn kubectl(&self, words: &[&str]) -> CommandOutput {
        CommandOutput::of(self.kubectl_command(words).stdin(Stdio::null()).output().unwrap())
    }

    /// Builds an image of a shell and these programs below /app.
    pub fn image(&self, home: &Home, name: &str, programs: &[(&str, &str)]) {
        let folder = home.path().join(format!("image-{}", name.replace(':', "-")));
        for (program, text) in programs {
            let at = format!("{}/app/{program}", folder.file_name().unwrap().to_str().unwrap());
            home.program(&at, text);
        }
        self.script("image", &[name, folder.to_str().unwrap()]);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The end of the keeper's input stops the cluster.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
        // After a failed test the folder stays, because it holds the logs.
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// The cluster, the servers beside it, and the driver of its node.
pub struct ClusterPlane {
    cluster: Cluster,
    /// The environment variables of every command and daemon of the plane.
    pub env: Vec<(String, String)>,
    driver_home: Home,
    driver: Option<RunningCommand>,
    _servers: (Mongo, Rabbit, S3),
}

/// Returns the cluster with its servers and driver, for one test at a time. Where no Kubernetes is
/// built, prints that and returns none.
pub fn world() -> Option<MutexGuard<'static, ClusterPlane>> {
    static WORLD: OnceLock<Option<Mutex<ClusterPlane>>> = OnceLock::new();
    let world = WORLD
        .get_or_init(|| Cluster::start().map(|cluster| Mutex::new(ClusterPlane::start(cluster))));
    Some(world.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
}

impl ClusterPlane {
    fn start(cluster: Cluster) -> Self {
        let (mongo, rabbit, s3) = (Mongo::start(), Rabbit::start(), S3::start());
        let mut env = plane(&mongo.url, &rabbit.url, &s3.url, &s3.env);
        env.push(("ION_TICKET_KEY".into(), KEY.into()));
        env.push(("KUBECONFIG".into(), cluster.at("kubeconfig").display().to_string()));
        let mut driver_home = Home::new();
        driver_home.env.clone_from(&env);
        let mut world =
            Self { cluster, env, driver_home, driver: None, _servers: (mongo, rabbit, s3) };
        world.kubectl_with(
            &["apply", "-f", "-"],
            "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {name: csi.ionfs}\nspec:\n  attachRequired: false\n  \
             podInfoOnMount: true\n  fsGroupPolicy: None\n  volumeLifecycleModes: [Ephemeral]\n",
        );
        world.start_driver();
        world
    }

    /// Starts the node's driver and waits until the kubelet knows it.
    pub fn start_driver(&mut self) {
        let kubelet = self.cluster.at("kubelet");
        let socket = kubelet.join("plugins/csi.ionfs/csi.sock");
        let words = [
            "enter".into(),
            self.dir().display().to_string(),
            ION.into(),
            "csi".into(),
            "--node-id".into(),
            "n1".into(),
            "--endpoint".into(),
            socket.display().to_string(),
            "--kubelet-endpoint".into(),
            socket.display().to_string(),
            "--registration".into(),
            kubelet.join("plugins_registry/csi.ionfs-reg.sock").display().to_string(),
        ];
        let driver = self.driver_home.start_program(Path::new(SCRIPT), "csi", &words);
        wait_for("the kubelet to know the driver", || {
            self.kubectl(&[
                "get",
                "csinode",
                "n1",
                "-o",
                "name",
                "-o",
                "jsonpath={.spec.drivers[*].name}",
            ])
            .contains("csi.ionfs")
        });
        self.driver = Some(driver);
    }

    /// Hands the node's driver to the caller, who may stop or kill it.
    pub fn driver(&mut self) -> RunningCommand {
        self.driver.take().unwrap()
    }

    /// Returns a home on this plane, for a dispatcher or a user.
    pub fn home(&self) -> Home {
        let mut home = Home::new();
        home.env.clone_from(&self.env);
        home
    }

    pub fn dir(&self) -> &Path {
        &self.cluster.dir
    }

    /// Runs a verb of the cluster's script.
    pub fn script(&self, words: &[&str]) {
        self.cluster.script(words[0], &words[1..]);
    }

    /// Returns the output of `kubectl`.
    #[track_caller]
    pub fn kubectl(&self, words: &[&str]) -> String {
        self.cluster.kubectl(words).well().stdout
    }

    /// Gives the node a taint until the returned value is dropped.
    #[must_use]
    pub fn taint<'a>(&'a self, taint: &'a str) -> Taint<'a> {
        self.kubectl(&["taint", "node", "n1", taint]);
        Taint(self, taint)
    }

    /// Returns the output of `kubectl` as a JSON document.
    pub fn kubectl_json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.kubectl(&[words, &["-o", "json"]].concat())).unwrap()
    }

    /// Runs `kubectl` with a text as its input.
    pub fn kubectl_with(&self, words: &[&str], text: &str) {
        use std::io::Write as _;
        let mut child = self
            .cluster
            .kubectl_command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "kubectl {words:?}");
    }

    /// Creates a namespace, which dispatchers with this home use.
    pub fn namespace(&self, name: &str, home: &mut Home) {
        self.kubectl(&["create", "namespace", name]);
        home.env.push(("ION_KUBERNETES_NAMESPACE".into(), name.into()));
        wait_for("the namespace's account", || {
            self.kubectl(&["-n", name, "get", "serviceaccounts", "-o", "name"]).contains("default")
        });
    }

    /// Builds an image as [`Cluster::image`] does.
    pub fn image(&self, home: &Home, name: &str, programs: &[(&str, &str)]) {
        self.cluster.image(home, name, programs);
    }
}

/// Returns the programs of the words example.
pub fn words_programs() -> [(&'static str, String); 3] {
    ["split.sh", "count.sh", "merge.sh"].map(|name| {
        let path = format!("{}/examples/words/{name}", env!("CARGO_MANIFEST_DIR"));
        (name, std::fs::read_to_string(path).unwrap())
    })
}

/// A taint of the node, removed on drop.
pub struct Taint<'a>(&'a ClusterPlane, &'a str);

impl Drop for Taint<'_> {
    /// The taint is removed after a failed test too, because the other tests share the node.
    fn drop(&mut self) {
        let ran = self.0.cluster.kubectl(&["taint", "node", "n1", &format!("{}-", self.1)]);
        if ran.code != Some(0) {
            eprintln!("the taint {} could not be removed: {ran:#?}", self.1);
        }
    }
}
