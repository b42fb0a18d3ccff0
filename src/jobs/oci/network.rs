//! A network for jobs that may have one: pasta or slirp4netns connect the run's own namespace to the outside as an
//! ordinary program of the host would, so a job never sees the host's interfaces and needs no bridge and no rules.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How long a tool may take until the network is up.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// Where pasta answers name queries, when the host's own name server is one that only the host can reach. An address
/// of the link-local range is nobody's.
const PASTA_DNS: &str = "169.254.1.53";
/// Where slirp4netns answers name queries (its manual: the third address of 10.0.2.0/24).
const SLIRP_DNS: &str = "10.0.2.3";

/// What a tool says goes here, in the room of the run, which is bounded.
const LOG: &str = "network.log";
/// Most that is read of it.
const LOG_MAX: u64 = 16 << 10;

/// A tool of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tool {
    pub(super) kind: Kind,
    pub(super) path: PathBuf,
}

/// Which tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Pasta,
    Slirp4netns,
}

/// The tool of this host, pasta before slirp4netns.
pub(super) fn find() -> Result<Tool, String> {
    let tool = |kind, name| find_program(name).map(|path| Tool { kind, path });
    tool(Kind::Pasta, "pasta").or_else(|| tool(Kind::Slirp4netns, "slirp4netns")).ok_or_else(|| {
        "network: all needs pasta (package passt) or slirp4netns on this host: install one of them, or grant \
         overrides.network: [host]"
            .to_owned()
    })
}

/// Looks a program up as a shell does, and where administrators' programs are even if PATH does not say so.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual =
        ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    let mut candidates = std::env::split_paths(&path).filter(|p| p.is_absolute()).chain(usual);
    candidates.find_map(|dir| {
        let candidate = dir.join(name);
        let executable = rustix::fs::access(&candidate, rustix::fs::Access::EXEC_OK).is_ok();
        (executable && candidate.is_file()).then_some(candidate)
    })
}

/// A running tool; ends with its owner.
#[derive(Debug)]
pub(super) struct UserNetwork {
    child: Child,
}

impl UserNetwork {
    /// Connects the namespace at `namespace`; `dir` takes a file or two.
    pub(super) fn start(tool: &Tool, namespace: &Path, dir: &Path) -> Result<Self, String> {
        match tool.kind {
            Kind::Slirp4netns => {
                Self::wait_ready(slirp4netns(tool, namespace, dir)?, &dir.join("slirp.ready"), &dir.join(LOG))
            }
            Kind::Pasta => {
                let ready = dir.join("pasta.pid");
                let log = dir.join(LOG);
                let as_nobody = Self::wait_ready(pasta(tool, namespace, &ready, false)?, &ready, &log);
                // Older versions give up root before they enter a namespace that belongs to root.
                as_nobody.or_else(|_| Self::wait_ready(pasta(tool, namespace, &ready, true)?, &ready, &log))
            }
        }
    }

    /// Its process.
    pub(super) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or_default()
    }

    fn wait_ready(mut command: Command, ready: &Path, log: &Path) -> Result<Self, String> {
        command.stderr(fs::File::create(log).map_or_else(|_| Stdio::null(), Stdio::from));
        let name = command.get_program().display().to_string();
        let child = command.spawn().map_err(|e| format!("cannot start {name}: {e}"))?;
        let mut network = Self { child };
        let until = Instant::now() + READY_TIMEOUT;
        loop {
            if fs::metadata(ready).is_ok_and(|m| m.len() > 0) {
                return Ok(network);
            }
            if let Ok(Some(status)) = network.child.try_wait() {
                return Err(format!(
                    "{name} could not connect the job's network: {status}{}",
                    last_words(log)
                ));
            }
            if Instant::now() > until {
                return Err(format!(
                    "{name} did not connect the job's network in {} s",
                    READY_TIMEOUT.as_secs()
                ));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What the tool said last, as an appendix.
fn last_words(log: &Path) -> String {
    let mut text = String::new();
    let _ = fs::File::open(log).and_then(|file| file.take(LOG_MAX).read_to_string(&mut text));
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let from = lines.len().saturating_sub(3);
    let last = lines.get(from..).unwrap_or_default().join("; ");
    if last.is_empty() { last } else { format!(" ({last})") }
}

impl Drop for UserNetwork {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the foreground, outgoing only: no port of the host or of the job is forwarded, and the gateway's address does
/// not lead to the host's loopback.
fn pasta(tool: &Tool, namespace: &Path, ready: &Path, as_root: bool) -> Result<Command, String> {
    let mut command = quiet(&tool.path)?;
    command.args(["--foreground", "--config-net", "--quiet", "--no-map-gw", "--dns-forward", PASTA_DNS]);
    command.args(["-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
    if as_root {
        command.args(["--runas", "0"]);
    }
    command.arg("--pid").arg(ready).arg("--netns").arg(namespace);
    Ok(command)
}

fn slirp4netns(tool: &Tool, namespace: &Path, dir: &Path) -> Result<Command, String> {
    let mut command = quiet(&tool.path)?;
    let ready = fs::File::create(dir.join("slirp.ready")).map_err(|e| format!("slirp.ready: {e}"))?;
    // It writes "1" to the descriptor when it is up; its standard output is as good as any.
    command.args([
        "--configure",
        "--mtu=65520",
        "--disable-host-loopback",
        "--ready-fd=1",
        "--netns-type=path",
    ]);
    command.arg(namespace).arg("tap0").stdout(ready);
    Ok(command)
}

fn quiet(program: &Path) -> Result<Command, String> {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    Ok(command)
}

/// The job's `/etc/resolv.conf`: the host's, with name servers that the job can reach.
pub(super) fn resolv_conf(tool: Option<&Tool>) -> String {
    let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    resolv_conf_from(&host, tool.map(|t| t.kind))
}

fn resolv_conf_from(host: &str, tool: Option<Kind>) -> String {
    let Some(kind) = tool else { return host.to_owned() };
    let server = |line: &str| line.trim().strip_prefix("nameserver").map(|rest| rest.trim().to_owned());
    let reachable = |address: &String| !address.starts_with("127.") && address != "::1";
    let mut servers: Vec<String> = host.lines().filter_map(server).filter(reachable).collect();
    if kind == Kind::Slirp4netns {
        servers = vec![SLIRP_DNS.to_owned()];
    } else if servers.is_empty() {
        servers = vec![PASTA_DNS.to_owned()];
    }
    let mut text: String = host
        .lines()
        .filter(|l| l.starts_with("search") || l.starts_with("options"))
        .flat_map(|l| [l, "\n"])
        .collect();
    for address in servers {
        text.push_str(&format!("nameserver {address}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_of_the_hosts_loopback_are_replaced() {
        let host = "search corp\n# c\nnameserver 127.0.0.53\noptions edns0\n";
        assert_eq!(
            resolv_conf_from(host, Some(Kind::Pasta)),
            format!("search corp\noptions edns0\nnameserver {PASTA_DNS}\n")
        );
        assert_eq!(resolv_conf_from("nameserver 9.9.9.9\n", Some(Kind::Pasta)), "nameserver 9.9.9.9\n");
        assert_eq!(
            resolv_conf_from("nameserver 9.9.9.9\n", Some(Kind::Slirp4netns)),
            "nameserver 10.0.2.3\n"
        );
        assert_eq!(resolv_conf_from(host, None), host);
    }
}
