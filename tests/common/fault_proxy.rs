//! An HTTP proxy in front of a registry that does wrong what it is told to.
//!
//! It speaks just enough HTTP/1.1 for that: one request a connection, the whole answer of the registry in memory,
//! then the answer is spoilt and sent. In the registry's place it can also play the host of presigned addresses:
//! a path below `/presigned` is asked of the registry without the prefix.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The `Range` header is not seen: 200 with everything.
    IgnoreRange,
    /// The registry is asked for this `Range` instead, and its answer says so.
    OtherRange(&'static str),
    /// The connection ends after so many bytes of the body, whose length was announced.
    Truncate(usize),
    /// The same, without announcing the length.
    TruncateUnannounced(usize),
    /// The byte at this place of the body is another one.
    Flip(usize),
    /// An answer without asking the registry.
    Answer { status: u16, headers: Vec<(&'static str, String)>, body: String },
    /// The connection is reset after so many bytes of the body; `None` is before the head.
    Reset(Option<usize>),
    /// Nothing more comes after so many bytes of the body; `None` is before the head.
    Stall(Option<usize>),
    /// After so many bytes of the body, a byte comes every 20 ms.
    Drip(usize),
    /// 307 to `to` plus `/presigned`, the path, and a query that looks signed.
    Redirect { to: String },
    /// What follows so many bytes of the body comes when the gate is opened; where a place is given, the byte there is
    /// another one.
    Hold { after: usize, flip: Option<usize>, gate: Gate },
    /// `Content-Range` is replaced, or taken away.
    ContentRange(Option<String>),
    /// So many bytes follow the body, and no length is announced.
    OverLong(usize),
    /// This header of the answer is replaced.
    Header(&'static str, String),
}

impl Fault {
    /// An answer without the registry.
    pub fn status(status: u16) -> Self {
        Self::Answer { status, headers: vec![], body: String::new() }
    }

    /// A login page.
    pub fn html() -> Self {
        let headers = vec![("Content-Type", "text/html; charset=utf-8".to_owned())];
        Self::Answer { status: 200, headers, body: "<html>please log in</html>".to_owned() }
    }
}

/// Opens once, for all that wait.
#[derive(Debug, Clone)]
pub struct Gate(Arc<tokio::sync::watch::Sender<bool>>);

impl Gate {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(Arc::new(tokio::sync::watch::Sender::new(false)))
    }

    pub fn open(&self) {
        self.0.send_replace(true);
    }
}

/// Which requests a fault is for, and how often it happens.
#[derive(Debug, Clone)]
struct Rule {
    method: &'static str,
    path: String,
    times: usize,
    fault: Fault,
}

/// For faults that do not end.
pub const ALWAYS: usize = usize::MAX;

/// A request that came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// Path and query.
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
}

/// A running proxy; it ends when dropped.
pub struct FaultProxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

impl FaultProxy {
    /// Before the registry at `127.0.0.1:upstream`.
    pub async fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("address");
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            // connections end with the proxy
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                connections.spawn(async move {
                    let _ = serve(client, upstream, &state).await;
                });
            }
        });
        Self { address, state, task }
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Lets `fault` happen to the next `times` requests of `method` whose path contains `path`.
    pub fn fail(&self, method: &'static str, path: impl Into<String>, times: usize, fault: Fault) {
        let rule = Rule { method, path: path.into(), times, fault };
        self.state.lock().unwrap().rules.push(rule);
    }

    /// Whether every fault that was to happen a number of times has.
    pub fn all_happened(&self) -> bool {
        self.state.lock().unwrap().rules.iter().all(|rule| rule.times == 0)
    }

    /// No more faults.
    pub fn heal(&self) {
        self.state.lock().unwrap().rules.clear();
    }

    /// The requests so far of which the path contains `path`; they are forgotten.
    pub fn take_seen(&self, path: &str) -> Vec<Seen> {
        let seen = std::mem::take(&mut self.state.lock().unwrap().seen);
        seen.into_iter().filter(|request| request.path.contains(path)).collect()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Message {
    first: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Message {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: Option<&str>) {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self.headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    fn head(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.into_bytes()
    }
}

async fn serve(mut client: TcpStream, upstream: u16, state: &Mutex<State>) -> io::Result<()> {
    let mut request = read_request(&mut client).await?;
    let mut words = request.first.split(' ');
    let (method, path) = (words.next().unwrap_or("").to_owned(), words.next().unwrap_or("").to_owned());
    let fault = {
        let mut state = state.lock().unwrap();
        state.seen.push(Seen {
            method: method.clone(),
            path: path.clone(),
            range: request.header("range").map(str::to_owned),
            authorization: request.header("authorization").map(str::to_owned),
        });
        let rule = state
            .rules
            .iter_mut()
            .find(|rule| rule.times > 0 && rule.method == method && path.contains(&rule.path));
        rule.map(|rule| {
            rule.times -= 1;
            rule.fault.clone()
        })
    };
    match &fault {
        Some(Fault::Answer { status, headers, body }) => {
            let mut answer = Message {
                first: format!("HTTP/1.1 {status} Fault"),
                headers: headers.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
                body: body.clone().into_bytes(),
            };
            return finish(&mut client, &mut answer, method == "HEAD").await;
        }
        Some(Fault::Redirect { to }) => {
            let location = format!("http://{to}/presigned{path}?X-Signature=secretsignature");
            let mut answer = Message {
                first: "HTTP/1.1 307 Temporary Redirect".to_owned(),
                headers: vec![("Location".to_owned(), location)],
                body: vec![],
            };
            return finish(&mut client, &mut answer, false).await;
        }
        Some(Fault::Reset(None)) => return reset(client),
        Some(Fault::Stall(None)) => return stall(client).await,
        Some(Fault::IgnoreRange) => request.set("range", None),
        Some(Fault::OtherRange(range)) => request.set("range", Some(range)),
        _ => {}
    }
    let mut answer = ask(upstream, &method, &path, request).await?;
    let head_only = method == "HEAD";
    let all = answer.body.len();
    match fault {
        Some(Fault::Truncate(length)) => {
            answer.set("Content-Length", Some(&all.to_string()));
            send_part(&mut client, &answer, length).await
        }
        Some(Fault::TruncateUnannounced(length)) => {
            answer.set("Content-Length", None);
            send_part(&mut client, &answer, length).await
        }
        Some(Fault::Reset(Some(length))) => {
            answer.set("Content-Length", Some(&all.to_string()));
            send_part(&mut client, &answer, length).await?;
            // a reset throws away what was not read yet: let it be read
            tokio::time::sleep(Duration::from_millis(50)).await;
            reset(client)
        }
        Some(Fault::Stall(Some(length))) => {
            answer.set("Content-Length", Some(&all.to_string()));
            send_part(&mut client, &answer, length).await?;
            stall(client).await
        }
        Some(Fault::Drip(length)) => {
            answer.set("Content-Length", Some(&all.to_string()));
            send_part(&mut client, &answer, length).await?;
            for byte in answer.body.iter().skip(length) {
                client.write_all(&[*byte]).await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        }
        Some(Fault::Flip(at)) => {
            if let Some(byte) = answer.body.get_mut(at) {
                *byte ^= 0xff;
            }
            finish(&mut client, &mut answer, head_only).await
        }
        Some(Fault::Hold { after, flip, gate }) => {
            if let Some(byte) = flip.and_then(|at| answer.body.get_mut(at)) {
                *byte ^= 0xff;
            }
            answer.set("Content-Length", Some(&all.to_string()));
            let rest = answer.body.split_off(after.min(all));
            client.write_all(&answer.head()).await?;
            client.write_all(&answer.body).await?;
            client.flush().await?;
            let _ = gate.0.subscribe().wait_for(|open| *open).await;
            client.write_all(&rest).await
        }
        Some(Fault::OverLong(more)) => {
            answer.set("Content-Length", None);
            answer.body.extend(std::iter::repeat_n(b'!', more));
            let length = answer.body.len();
            send_part(&mut client, &answer, length).await
        }
        Some(Fault::ContentRange(value)) => {
            answer.set("Content-Range", value.as_deref());
            finish(&mut client, &mut answer, head_only).await
        }
        Some(Fault::Header(name, value)) => {
            answer.set(name, Some(&value));
            finish(&mut client, &mut answer, head_only).await
        }
        _ => finish(&mut client, &mut answer, head_only).await,
    }
}

/// Asks the registry, in HTTP/1.0 so that the answer ends with the connection.
async fn ask(upstream: u16, method: &str, path: &str, mut request: Message) -> io::Result<Message> {
    let path = match path.strip_prefix("/presigned") {
        Some(path) => path.split('?').next().unwrap_or(path),
        None => path,
    };
    request.first = format!("{method} {path} HTTP/1.0");
    request.set("connection", Some("close"));
    let mut server = TcpStream::connect(("127.0.0.1", upstream)).await?;
    server.write_all(&request.head()).await?;
    server.write_all(&request.body).await?;
    let mut all = vec![];
    server.read_to_end(&mut all).await?;
    let (mut message, body_at) = parse_head(&all).ok_or(io::ErrorKind::InvalidData)?;
    message.body = all.split_off(body_at);
    message.first = message.first.replacen("HTTP/1.0", "HTTP/1.1", 1);
    Ok(message)
}

async fn finish(client: &mut TcpStream, answer: &mut Message, head_only: bool) -> io::Result<()> {
    answer.set("Connection", Some("close"));
    if !head_only {
        let length = answer.body.len().to_string();
        answer.set("Content-Length", Some(&length));
    }
    client.write_all(&answer.head()).await?;
    client.write_all(&answer.body).await?;
    client.shutdown().await
}

async fn send_part(client: &mut TcpStream, answer: &Message, length: usize) -> io::Result<()> {
    client.write_all(&answer.head()).await?;
    client.write_all(answer.body.get(..length).unwrap_or(&answer.body)).await?;
    client.flush().await
}

fn reset(client: TcpStream) -> io::Result<()> {
    client.set_zero_linger()
}

async fn stall(client: TcpStream) -> io::Result<()> {
    let _open = client;
    std::future::pending().await
}

async fn read_request(client: &mut TcpStream) -> io::Result<Message> {
    let mut all = vec![];
    loop {
        if let Some((mut message, body_at)) = parse_head(&all) {
            let length = message.header("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
            while all.len() < body_at + length {
                if client.read_buf(&mut all).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            message.body = all.split_off(body_at);
            return Ok(message);
        }
        if client.read_buf(&mut all).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn parse_head(all: &[u8]) -> Option<(Message, usize)> {
    let end = all.windows(4).position(|four| four == b"\r\n\r\n")?;
    let text = String::from_utf8_lossy(all.get(..end)?).into_owned();
    let mut lines = text.split("\r\n");
    let first = lines.next()?.to_owned();
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect();
    Some((Message { first, headers, body: vec![] }, end + 4))
}
