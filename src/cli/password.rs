//! The password of a signing key: from `COSIGN_PASSWORD`, as cosign takes it, or from the terminal.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use zeroize::Zeroizing;

/// The variable that cosign reads too.
const VARIABLE: &str = "COSIGN_PASSWORD";

/// The password of an existing key.
pub(crate) fn existing(key: &str) -> anyhow::Result<Zeroizing<String>> {
    match from_environment()? {
        Some(password) => Ok(password),
        None => prompt(&format!("Password of {key}: ")),
    }
}

/// A password for a new key, typed twice.
pub(crate) fn new(key: &str) -> anyhow::Result<Zeroizing<String>> {
    if let Some(password) = from_environment()? {
        return Ok(password);
    }
    let first = prompt(&format!("New password for {key} (empty for none): "))?;
    let second = prompt("The same again: ")?;
    anyhow::ensure!(first == second, "the two passwords differ: nothing was written");
    Ok(first)
}

fn from_environment() -> anyhow::Result<Option<Zeroizing<String>>> {
    match std::env::var(VARIABLE) {
        Ok(password) => Ok(Some(Zeroizing::new(password))),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => anyhow::bail!("{VARIABLE} is not text"),
    }
}

fn prompt(words: &str) -> anyhow::Result<Zeroizing<String>> {
    anyhow::ensure!(
        std::io::stdin().is_terminal(),
        "there is no terminal to ask for the password: set {VARIABLE} (it may be empty)"
    );
    rpassword::prompt_password(words).map(Zeroizing::new).context("cannot read the password")
}
