//! What the spawner hands to a shim by descriptor: `name=number` among the arguments.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use zeroize::Zeroizing;

use crate::jobs::spawner;

/// What came with us by descriptor.
#[derive(Debug)]
pub(super) struct Inherited {
    /// Open for both ways, so that it never ends while we are here.
    pub(super) control: File,
    /// The run's `stdin`, open for both ways: somebody reads it from before the start was answered.
    pub(super) stdin: Option<File>,
    pub(super) secrets: Vec<(String, Zeroizing<String>)>,
    pub(super) network: Option<OwnedFd>,
}

impl Inherited {
    pub(super) fn take(args: &[OsString]) -> Result<Self, String> {
        let (mut control, mut stdin, mut secrets, mut network) = (None, None, Vec::new(), None);
        let mut named = Vec::new();
        for arg in args {
            let Some((name, number)) = arg.to_str().and_then(|a| a.split_once('=')) else { continue };
            let fd = number.parse().ok().and_then(spawner::adopt);
            named.push((name, fd.ok_or_else(|| format!("{name}: descriptor {number} is not open"))?));
        }
        for (name, fd) in named {
            match name {
                "control" => control = Some(File::from(fd)),
                "stdin" => stdin = Some(File::from(fd)),
                "secrets" => secrets = read_secrets(File::from(fd))?,
                "network" => network = Some(fd),
                _ => {}
            }
        }
        spawner::close_all_at_exec();
        let control = control.ok_or("no control pipe")?;
        let nonblocking = || fcntl_setfl(&control, fcntl_getfl(&control)? | OFlags::NONBLOCK);
        nonblocking().map_err(|e: rustix::io::Errno| format!("control: {e}"))?;
        Ok(Self { control, stdin, secrets, network })
    }
}

fn read_secrets(mut file: File) -> Result<Vec<(String, Zeroizing<String>)>, String> {
    let mut text = Zeroizing::new(Vec::new());
    file.read_to_end(&mut text).map_err(|e| format!("secrets: {e}"))?;
    let secrets: Vec<(String, String)> =
        serde_json::from_slice(&text).map_err(|e| format!("secrets: {e}"))?;
    Ok(secrets.into_iter().map(|(name, value)| (name, Zeroizing::new(value))).collect())
}
