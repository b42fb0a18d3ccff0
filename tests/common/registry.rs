//! Debian's `docker-registry` on a free loopback port, gone when dropped and when the test dies.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use addonfs::fetch::registry::{Connections, Registry, RegistryOptions, RetryPolicy};
use addonfs::policy::reference::Location;

/// How the registry wants to be talked to.
pub enum Login {
    /// Anybody may do anything.
    None,
    /// Basic authentication with one name and password ([`BASIC`]).
    Basic,
    /// Nobody is asked, but over TLS with a certificate that nobody knows.
    UnknownCertificate,
    /// Nobody is asked, over TLS with this certificate and its key.
    Certificate { certificate: String, key: String },
    /// Tokens of a service: see `token_service.rs`.
    Token { realm: String, issuer: String, certificate: std::path::PathBuf },
}

/// The name and password of [`Login::Basic`].
pub const BASIC: (&str, &str) = ("robot", "s3cret");
/// The same as a line of an htpasswd file, in bcrypt, which is all that the registry reads.
const HTPASSWD: &str = "robot:$2b$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK\n";

/// A running registry.
pub struct DockerRegistry {
    process: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl DockerRegistry {
    /// One that asks for no login.
    pub fn start() -> Self {
        Self::start_with(&Login::None)
    }

    /// One with a login.
    pub fn start_with(login: &Login) -> Self {
        let folder = tempfile::tempdir().expect("temp folder");
        // another process may take the port between choosing and listening
        for _ in 0..5 {
            if let Some(registry) = Self::try_start(login, &folder) {
                let (process, port) = registry;
                return Self { process, port, folder };
            }
        }
        panic!("docker-registry does not start: is the package docker-registry installed?");
    }

    fn try_start(login: &Login, folder: &tempfile::TempDir) -> Option<(Child, u16)> {
        let port = free_port();
        let config = folder.path().join("config.yml");
        std::fs::write(&config, configuration(login, port, folder.path())).expect("config");
        // setpriv: the registry dies with us, however we die
        let mut process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("setpriv of util-linux");
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if process.try_wait().expect("wait").is_some() {
                return None;
            }
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some((process, port));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = process.kill();
        let _ = process.wait();
        None
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A repository on it, with options for tests.
    pub fn repository(&self, name: &str) -> Arc<Registry> {
        repository(&self.host(), name, &quick())
    }

    /// Where the registry keeps its blobs.
    pub fn storage(&self) -> &Path {
        self.folder.path()
    }

    /// Ends it before the drop: the registry is down from now on.
    pub fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A repository on `host` (`127.0.0.1:port`).
pub fn repository(host: &str, name: &str, options: &RegistryOptions) -> Arc<Registry> {
    let location = Location::Registry { host: host.to_owned(), repository: name.to_owned() };
    Registry::open(&location, options).expect("a registry location")
}

/// Options whose pauses are short. The time limits are not: a busy machine is no stalled registry.
pub fn quick() -> RegistryOptions {
    RegistryOptions {
        connections: Connections::new(Duration::from_secs(20)),
        stall_timeout: Duration::from_secs(20),
        retry: RetryPolicy {
            attempts: 4,
            base: Duration::from_millis(5),
            cap: Duration::from_millis(20),
            patience: Duration::from_secs(3),
        },
        ..RegistryOptions::default()
    }
}

/// The same for tests in which something stalls.
pub fn hasty() -> RegistryOptions {
    RegistryOptions {
        stall_timeout: Duration::from_millis(400),
        commit_timeout: Duration::from_millis(800),
        ..quick()
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("address").port()
}

fn configuration(login: &Login, port: u16, folder: &Path) -> String {
    let mut tls = String::new();
    let auth = match login {
        Login::None => String::new(),
        Login::Basic => {
            let file = folder.join("htpasswd");
            std::fs::write(&file, HTPASSWD).expect("htpasswd");
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display())
        }
        Login::UnknownCertificate => {
            let (key, certificate) = self_signed(folder);
            tls = format!("  tls:\n    certificate: {certificate}\n    key: {key}\n");
            String::new()
        }
        Login::Certificate { certificate, key } => {
            tls = format!("  tls:\n    certificate: {certificate}\n    key: {key}\n");
            String::new()
        }
        Login::Token { realm, issuer, certificate } => format!(
            "auth:\n  token:\n    realm: {realm}\n    service: test-registry\n    issuer: {issuer}\n    \
             rootcertbundle: {}\n",
            certificate.display()
        ),
    };
    let mut secret = [0; 8];
    let random = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut secret));
    random.expect("random bytes");
    format!(
        "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
         rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n  secret: {:x}\n{tls}{auth}",
        folder.join("data").display(),
        u64::from_ne_bytes(secret)
    )
}

/// A key and a certificate for 127.0.0.1, as files in `folder`.
pub fn self_signed(folder: &Path) -> (String, String) {
    let path = |name: &str| folder.join(name).display().to_string();
    let (key, certificate) = (path("key.pem"), path("certificate.pem"));
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", &key, "-out", &certificate])
        .output()
        .expect("openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (key, certificate)
}
