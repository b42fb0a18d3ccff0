//! `addonfs keygen`: makes a signing key as cosign makes it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::password;
use crate::policy::trust::keys::{PrivateKey, PublicKey};

/// Make a key pair for signing add-ons; cosign can use it, and the reverse.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The password comes from COSIGN_PASSWORD or the terminal. Existing files are never overwritten.

Examples:
  addonfs keygen --output cosign          writes cosign.key and cosign.pub
  COSIGN_PASSWORD= addonfs keygen         a key without a password, for tests"
)]
pub(crate) struct KeygenArgs {
    /// Path of the key files without .key and .pub
    #[arg(long, value_name = "PREFIX", default_value = "cosign")]
    output: PathBuf,
    /// Print the files and the key's fingerprint as JSON
    #[arg(short = 'o', value_name = "FORMAT", value_parser = ["json"])]
    format: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(args: KeygenArgs) -> anyhow::Result<ExitCode> {
    let (private, public) = (with_suffix(&args.output, ".key"), with_suffix(&args.output, ".pub"));
    for path in [&private, &public] {
        anyhow::ensure!(!path.exists(), "{} exists already: name another --output", path.display());
    }
    let password = password::new(&private.display().to_string())?;
    let verifier = write_pair(&private, &public, password.as_bytes())?;
    if args.format.is_some() {
        let json = serde_json::json!({
            "private_key": private, "public_key": public, "fingerprint": verifier.fingerprint(),
        });
        println!("{json}");
    } else {
        println!("{}\n{}", private.display(), public.display());
        eprintln!(
            "Keep {} secret. Whoever shall trust it needs {} in policy.trust.keys.",
            private.display(),
            public.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes a key and writes both halves.
fn write_pair(private: &Path, public: &Path, password: &[u8]) -> anyhow::Result<PublicKey> {
    let key = PrivateKey::generate().map_err(anyhow::Error::msg)?;
    let sealed = key.to_encrypted_pem(password).map_err(anyhow::Error::msg)?;
    let verifier = key.public().map_err(anyhow::Error::msg)?;
    create(private, 0o600, &sealed)?;
    create(public, 0o644, &verifier.to_pem())?;
    Ok(verifier)
}

fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Creates the file with its mode from the first moment on; one that exists is left alone.
fn create(path: &Path, mode: u32, content: &str) -> anyhow::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all(content.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn writes_both_halves_once() {
        let temp = tempfile::tempdir().unwrap();
        let (private, public) = (temp.path().join("a.key"), temp.path().join("a.pub"));
        let verifier = write_pair(&private, &public, b"secret").unwrap();
        assert_eq!(std::fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o600);
        let read = PublicKey::from_pem(&std::fs::read(&public).unwrap()).unwrap();
        assert_eq!(read.fingerprint(), verifier.fingerprint());
        let key = PrivateKey::from_encrypted_pem(&std::fs::read(&private).unwrap(), b"secret").unwrap();
        assert!(verifier.verifies(b"x", &key.sign(b"x").unwrap()));
        assert!(write_pair(&private, &public, b"").is_err(), "never overwritten");
    }
}
