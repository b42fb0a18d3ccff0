//! Sockets and connections: how many, how large a head, how long one may take to say what it wants.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of one socket at a time, streams of events among them: a few hundred dashboards, some MiB of memory.
/// One more waits until one ends.
const MAX_CONNECTIONS: usize = 512;
/// From the opening of a connection, or the end of an answer, to the end of the next head.
const HEAD_TIME: Duration = Duration::from_secs(20);
/// Lines of a head.
const MAX_HEADERS: usize = 64;
/// Bytes of a head: a token, an idempotency key, and what proxies add.
const MAX_HEAD: usize = 32 << 10;
/// After a failed `accept`: descriptors may come free.
const PAUSE: Duration = Duration::from_millis(200);

/// Who is at the other end.
#[derive(Debug, Clone)]
pub(super) enum Peer {
    /// As the kernel knows it.
    Unix {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
        /// Process id, 0 if unknown.
        pid: u32,
    },
    /// Anybody.
    Tcp,
}

/// Listens on a path, in place of a socket that nobody listens on any more. Of a group, where there is one, the socket
/// is open to its members, else to the daemon's user (and root) alone.
pub(super) fn unix(path: &Path, group: Option<u32>, router: Router) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            // A daemon that died leaves its own; one that answers is somebody else's.
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another program listens there"));
            }
            std::fs::remove_file(path)?;
        }
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Made where nobody else looks, so that it is never open to more than it should be.
    let folder = tempfile::tempdir_in(path.parent().unwrap_or(Path::new("/")))?;
    let made = folder.path().join("s");
    let listener = UnixListener::bind(&made)?;
    if let Some(group) = group {
        std::os::unix::fs::chown(&made, None, Some(group))?;
    }
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    std::fs::set_permissions(&made, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(&made, path)?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await.and_then(|(stream, _)| Ok((stream.peer_cred()?, stream))) {
                Ok((credentials, stream)) => {
                    let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
                    let peer = Peer::Unix { uid: credentials.uid(), gid: credentials.gid(), pid };
                    tokio::spawn(serve(stream, peer, router.clone(), place));
                }
                Err(error) => pause(&error).await,
            }
        }
    });
    Ok(())
}

/// Listens on an address; the one that it got.
pub(super) async fn tcp(address: SocketAddr, router: Router) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(serve(stream, Peer::Tcp, router.clone(), place));
                }
                Err(error) => pause(&error).await,
            }
        }
    });
    Ok(bound)
}

async fn pause(error: &io::Error) {
    tracing::warn!("http: a connection was not taken: {error}");
    tokio::time::sleep(PAUSE).await;
}

/// One connection, to its end.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    router: Router,
    place: OwnedSemaphorePermit,
) {
    let service = TowerToHyperService::new(router.layer(Extension(peer)));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!("http: a connection ended with {error}");
    }
    drop(place);
}
