//! Real servers for one test: plain processes on private ports and in private folders, which a test
//! can stop, pause and kill. `scripts/setup-tests.sh` installs them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::wait_for;

/// A server and its data folder.
pub struct Server {
    /// The program and its arguments, to start it again.
    command: Vec<String>,
    env: Vec<(String, String)>,
    port: u16,
    folder: PathBuf,
    running: Option<Running>,
}

/// A running server and its keeper. The keeper is a shell that holds the server's process group.
/// When this process ends for any reason, the keeper's standard input closes, and it kills the
/// group.
struct Running {
    keeper: Child,
    group: i32,
}

/// The keeper's script. It removes the server's folder at the end, unless it reads the line `keep`:
/// then the folder stays for the next start.
const KEEPER: &str = r#"trap '' INT TERM
folder=$1; shift; setsid "$@" >>"$folder/log" 2>&1 </dev/null & echo $!
read -r word; kill -KILL -$! 2>/dev/null; wait; [ "$word" = keep ] || rm -rf "$folder""#;

impl Server {
    fn new(name: &str, port: u16, command: Vec<String>, env: Vec<(String, String)>) -> Self {
        let folder = folder(name);
        Self { command, env, port, folder, running: None }
    }

    /// Starts the server and waits until its port answers.
    pub fn start(&mut self) {
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(&self.folder)
            .args(&self.command)
            .envs(self.env.iter().cloned())
            .current_dir(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let group = line.trim().parse().unwrap();
        self.running = Some(Running { keeper, group });
        let port = self.port;
        wait_for(&format!("{} to answer", self.command[0]), || {
            TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), Duration::from_millis(200))
                .is_ok()
        });
    }

    /// Sends SIGKILL to all processes of the server.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            writeln!(running.keeper.stdin.take().unwrap(), "keep").unwrap();
            running.keeper.wait().unwrap();
        }
    }

    /// Sends SIGTERM, and waits until the server has ended.
    pub fn stop(&mut self) {
        self.signal("TERM");
        let group = self.running.as_ref().unwrap().group;
        wait_for("the server to end", || {
            // A process that has ended stays a zombie until its keeper ends.
            let listed = Command::new("ps").args(["-eo", "pgid=,stat="]).output().unwrap();
            let listed = String::from_utf8(listed.stdout).unwrap();
            !listed.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some(&group.to_string())
                    && words.next().is_some_and(|state| !state.starts_with('Z'))
            })
        });
        self.kill();
    }

    /// Sends SIGSTOP: the server and its connections make no progress.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Sends SIGCONT.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let group = self.running.as_ref().unwrap().group;
        let status =
            Command::new("kill").args([&format!("-{name}"), "--", &format!("-{group}")]).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            eprintln!("--- {}", self.command[0]);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn folder(name: &str) -> PathBuf {
    let unique = format!("server-{name}-{}-{}", std::process::id(), free_port());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Returns a free port that stays free until its server takes it. Each port is returned once, and
/// all lie below the ports that the kernel gives to outgoing connections, because an outgoing
/// connection on the port would keep the server from starting.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let mut ports = std::iter::repeat_with(|| {
        let number =
            std::process::id().wrapping_mul(97).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        10_000 + u16::try_from(number % 20_000).unwrap()
    });
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

pub fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/ion-test");
    std::env::var_os("ION_TEST_CACHE").map_or_else(home, PathBuf::from)
}

fn installed(path: PathBuf) -> String {
    assert!(path.exists(), "{} is missing; scripts/setup-tests.sh installs it", path.display());
    path.to_str().unwrap().to_owned()
}

/// A RabbitMQ broker.
pub struct Rabbit {
    pub server: Server,
    _epmd: Server,
    pub url: String,
}

impl Rabbit {
    pub fn start() -> Self {
        Self::start_with(|_, port| format!("listeners.tcp.1 = 127.0.0.1:{port}\n"))
    }

    /// Starts a broker that only speaks TLS and requires a client certificate. Also returns the URL
    /// parameters for such a client.
    pub fn start_with_tls() -> (Self, String) {
        let mut parameters = String::new();
        let rabbit = Self::start_with(|folder, port| {
            let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
            let (ca, ca_key) = (at("ca.pem"), at("ca.key"));
            let openssl = |words: &[&str]| {
                let made = Command::new("openssl").args(words).stderr(Stdio::null()).status();
                assert!(made.unwrap().success(), "openssl {words:?}");
            };
            openssl(&[
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=Ion test CA",
                "-keyout",
                &ca_key,
                "-out",
                &ca,
            ]);
            for (name, more) in [
                ("server", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
                ("client", "extendedKeyUsage=clientAuth"),
            ] {
                let (key, certificate) = (at(&format!("{name}.key")), at(&format!("{name}.pem")));
                openssl(&[
                    "req",
                    "-x509",
                    "-newkey",
                    "rsa:2048",
                    "-nodes",
                    "-days",
                    "2",
                    "-subj",
                    &format!("/CN={name}"),
                    "-addext",
                    "basicConstraints=CA:FALSE",
                    "-addext",
                    more,
                    "-CA",
                    &ca,
                    "-CAkey",
                    &ca_key,
                    "-keyout",
                    &key,
                    "-out",
                    &certificate,
                ]);
            }
            parameters = format!(
                "cacertfile={ca}&certfile={}&keyfile={}",
                at("client.pem"),
                at("client.key")
            );
            format!(
                "listeners.tcp = none\nlisteners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {ca}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n\
                 ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n",
                at("server.pem"),
                at("server.key")
            )
        });
        (rabbit, parameters)
    }

    fn start_with(listeners: impl FnOnce(&Path, u16) -> String) -> Self {
        let program =
            std::fs::read_dir("/usr/lib/rabbitmq/lib").into_iter().flatten().flatten().next();
        let program =
            program.expect("rabbitmq-server is missing; scripts/setup-tests.sh installs it").path();
        let program = installed(program.join("sbin/rabbitmq-server"));
        let (port, distribution, mapper) = (free_port(), free_port(), free_port());
        let epmd = ["epmd", "-address", "127.0.0.1", "-port", &mapper.to_string()]
            .map(str::to_owned)
            .to_vec();
        let mut epmd = Server::new("epmd", mapper, epmd, vec![]);
        epmd.start();
        let mut server = Server::new("rabbitmq", port, vec![program], vec![]);
        let at = |name: &str| server.folder.join(name).to_str().unwrap().to_owned();
        let write = |name: &str, content: &str| {
            std::fs::write(server.folder.join(name), content).unwrap();
            at(name)
        };
        let listeners = listeners(&server.folder, port);
        let plain = listeners.contains("listeners.tcp.1");
        let config =
            format!("{listeners}loopback_users = none\ndisk_free_limit.absolute = 200MB\n");
        let env = [
            ("RABBITMQ_NODENAME", format!("ion{port}@localhost")),
            ("RABBITMQ_NODE_PORT", port.to_string()),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".into()),
            ("RABBITMQ_DIST_PORT", distribution.to_string()),
            ("ERL_EPMD_PORT", mapper.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
            ("RABBITMQ_MNESIA_BASE", at("mnesia")),
            ("RABBITMQ_LOG_BASE", at("logs")),
            ("RABBITMQ_CONFIG_FILE", write("rabbitmq.conf", &config)),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", write("enabled_plugins", "[].")),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".into()),
            ("RABBITMQ_PID_FILE", at("pid")),
            ("HOME", at("")),
            (
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1}".into(),
            ),
        ];
        server.env = env.map(|(key, value)| (key.to_owned(), value)).to_vec();
        server.start();
        let url = format!("amqp://guest:guest@127.0.0.1:{port}/");
        let mut rabbit = Self { server, _epmd: epmd, url };
        if plain {
            rabbit.wait_until_it_serves();
        }
        rabbit
    }

    /// Runs `rabbitmqctl` on the broker.
    pub fn ctl(&self, words: &[&str]) -> String {
        let program = Path::new(&self.server.command[0]).with_file_name("rabbitmqctl");
        let ran = Command::new(program)
            .args(words)
            .envs(self.server.env.iter().cloned())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(ran.status.success(), "{words:?}: {}{}", text(&ran.stdout), text(&ran.stderr));
        text(&ran.stdout)
    }

    /// Creates a virtual host and returns its URL. Each plane needs its own.
    pub fn virtual_host(&self, name: &str) -> String {
        self.ctl(&["add_vhost", name]);
        self.ctl(&["set_permissions", "-p", name, "guest", ".*", ".*", ".*"]);
        format!("{}{name}", self.url)
    }

    /// Creates a user, and a virtual host of the same name in which the user has these rights: to
    /// configure, to write and to read. Returns its URL.
    pub fn user(&self, name: &str, rights: [&str; 3]) -> String {
        self.ctl(&["add_vhost", name]);
        self.ctl(&["add_user", name, "a-password-of-tests-only"]);
        self.ctl(&[&["set_permissions", "-p", name, name], &rights[..]].concat());
        let user = format!("{name}:a-password-of-tests-only");
        format!("{}{name}", self.url.replace("guest:guest", &user))
    }

    /// Returns the broker's server alone, for a caller that only keeps it running.
    pub fn into_server(self) -> Server {
        // The port mapper is needed only while the broker starts; it ends with this process.
        std::mem::forget(self._epmd);
        self.server
    }

    /// Waits until the broker answers a client's header. Its port answers earlier.
    pub fn wait_until_it_serves(&mut self) {
        let port = self.server.port;
        wait_for("RabbitMQ to serve", || {
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
            let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
            let mut answer = [0; 1];
            stream.write_all(b"AMQP\0\0\x09\x01").is_ok()
                && std::io::Read::read_exact(&mut stream, &mut answer).is_ok()
                && answer[0] == 1
        });
    }
}

/// A document store that speaks MongoDB's protocol.
pub struct Mongo {
    pub server: Server,
    pub url: String,
}

impl Mongo {
    pub fn start() -> Self {
        let program = installed(cache().join("bin/secantusd-rs"));
        let port = free_port();
        let mut server = Server::new("mongodb", port, vec![], vec![]);
        let data = server.folder.join("data").to_str().unwrap().to_owned();
        std::fs::write(server.folder.join("secantusd.toml"), "").unwrap();
        let config = server.folder.join("secantusd.toml").to_str().unwrap().to_owned();
        server.command = [
            program.as_str(),
            "--config",
            &config,
            "--port",
            &port.to_string(),
            "--storage-path",
            &data,
            "--cache-size",
            "256M",
            "--log-level",
            "WARNING",
            "--sync-on-commit",
        ]
        .map(str::to_owned)
        .to_vec();
        server.start();
        Self { server, url: format!("mongodb://127.0.0.1:{port}") }
    }

    /// Returns the URL of a database of this name.
    pub fn database(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }
}

/// The environment variables that `ion` needs to reach a blob store.
pub type Env = Vec<(String, String)>;

fn env<const N: usize>(pairs: [(&str, &str); N]) -> Env {
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec()
}

/// An S3 store with one bucket.
pub struct S3 {
    pub server: Server,
    pub url: String,
    pub env: Env,
}

impl S3 {
    pub fn start() -> Self {
        let program = installed(cache().join("bin/garage"));
        let (port, rpc) = (free_port(), free_port());
        let mut server = Server::new("s3", port, vec![], vec![]);
        let folder = server.folder.to_str().unwrap().to_owned();
        let config = format!(
            "metadata_dir = \"{folder}/meta\"\ndata_dir = \"{folder}/data\"\ndb_engine = \"sqlite\"\nreplication_factor = 1\n\
             rpc_bind_addr = \"127.0.0.1:{rpc}\"\nrpc_public_addr = \"127.0.0.1:{rpc}\"\nrpc_secret = \"{}\"\n\
             [s3_api]\ns3_region = \"garage\"\napi_bind_addr = \"127.0.0.1:{port}\"\nroot_domain = \".s3.localhost\"\n",
            "5a".repeat(32)
        );
        let path = server.folder.join("garage.toml");
        std::fs::write(&path, config).unwrap();
        server.command =
            [&program, "-c", path.to_str().unwrap(), "server", "--single-node", "--default-bucket"]
                .map(str::to_owned)
                .to_vec();
        let (key, secret) = (format!("GK{}", "31".repeat(12)), "b1".repeat(32));
        server.env = env([
            ("GARAGE_DEFAULT_ACCESS_KEY", &key),
            ("GARAGE_DEFAULT_SECRET_KEY", &secret),
            ("GARAGE_DEFAULT_BUCKET", "ion"),
            ("RUST_LOG", "warn"),
        ]);
        server.start();
        let env = env([
            ("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{port}")),
            ("AWS_REGION", "garage"),
            ("AWS_ACCESS_KEY_ID", &key),
            ("AWS_SECRET_ACCESS_KEY", &secret),
        ]);
        Self { server, url: "s3://ion".into(), env }
    }
}

/// An image registry for one user, without TLS.
pub struct Registry {
    pub server: Server,
    /// The registry's name: a host and a port.
    pub name: String,
}

impl Registry {
    /// The user that may push and pull, and its password.
    pub const USER: (&str, &str) = ("ion", "a-password-of-tests-only");

    /// The same user in the server's file, with the password's bcrypt hash.
    const USERS: &str = "ion:$2b$04$G0Hb0JLii8E7rD55rkBqb.GqSI76YWikBK82DNBqVZUJ8qcxfhGz.\n";

    pub fn start() -> Self {
        let program = installed("/usr/bin/docker-registry".into());
        let port = free_port();
        let mut server = Server::new("registry", port, vec![], vec![]);
        let (folder, name) = (server.folder.display(), format!("127.0.0.1:{port}"));
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{name}'}}\n\
             storage: {{filesystem: {{rootdirectory: '{folder}/data'}}}}\n\
             auth: {{htpasswd: {{realm: tests, path: '{folder}/users'}}}}\n"
        );
        let path = server.folder.join("config.yml");
        std::fs::write(&path, config).unwrap();
        std::fs::write(server.folder.join("users"), Self::USERS).unwrap();
        server.command = [&program, "serve", path.to_str().unwrap()].map(str::to_owned).to_vec();
        server.start();
        Self { server, name }
    }

    /// Returns the requests so far that begin with `beginning`, each a method and a path.
    pub fn requests(&self, beginning: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.server.folder.join("log")).unwrap();
        let requests = log.lines().filter_map(|line| line.split('"').nth(1));
        requests.filter(|request| request.starts_with(beginning)).map(str::to_owned).collect()
    }
}

/// An Azure Blob store.
pub struct Azure {
    pub server: Server,
    pub env: Env,
    port: u16,
}

/// The well-known key that every emulator has; it is not a secret.
const AZURE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

impl Azure {
    pub fn start() -> Self {
        let program = installed(cache().join("azurite/node_modules/.bin/azurite-blob"));
        let port = free_port();
        let mut server = Server::new("azure", port, vec![], vec![]);
        server.command = [
            program.as_str(),
            "--blobHost",
            "127.0.0.1",
            "--blobPort",
            &port.to_string(),
            "--location",
            server.folder.to_str().unwrap(),
            "--silent",
            "--skipApiVersionCheck",
            "--disableTelemetry",
        ]
        .map(str::to_owned)
        .to_vec();
        server.start();
        let env = env([
            ("AZURE_STORAGE_ACCOUNT_NAME", "devstoreaccount1"),
            ("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY),
            ("AZURE_STORAGE_ENDPOINT", &format!("http://127.0.0.1:{port}/devstoreaccount1")),
        ]);
        Self { server, env, port }
    }

    /// Creates a container with a signed request as Azure's clients send it, because `object_store`
    /// has no call for that.
    pub fn make_container(&self, name: &str) {
        let made = Command::new("node")
            .args(["-e", MAKE_CONTAINER, AZURE_KEY, &self.port.to_string(), name])
            .status();
        assert!(made.unwrap().success(), "the container {name} could not be made");
    }
}

const MAKE_CONTAINER: &str = r#"
const [key, port, name] = process.argv.slice(1);
const account = "devstoreaccount1", date = new Date().toUTCString(), version = "2021-08-06";
const text = ["PUT", "", "", "", "", "", "", "", "", "", "", "", `x-ms-date:${date}`, `x-ms-version:${version}`,
    `/${account}/${account}/${name}`, "restype:container"].join("\n");
const signature = require("crypto").createHmac("sha256", Buffer.from(key, "base64")).update(text, "utf8").digest("base64");
fetch(`http://127.0.0.1:${port}/${account}/${name}?restype=container`, {
    method: "PUT",
    headers: {"x-ms-date": date, "x-ms-version": version, Authorization: `SharedKey ${account}:${signature}`},
}).then(async answer => { if (answer.status !== 201) { console.error(answer.status, await answer.text()); process.exit(1); } });
"#;

/// Returns the environment of `ion` for a plane of real servers: these documents, this bus and
/// these blobs.
pub fn plane(documents: &str, bus: &str, blobs: &str, more: &Env) -> Env {
    let mut env = env([("ION_DOCUMENTS", documents), ("ION_BUS", bus), ("ION_BLOBS", blobs)]);
    env.extend(more.iter().cloned());
    env
}
