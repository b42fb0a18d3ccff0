//! `addonfs init`: the folder of an add-on to start from.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

/// Files of the folder: path, mode, content.
const FILES: [(&str, u32, &str); 3] = [
    ("manifest.yaml", 0o644, include_str!("init/manifest.yaml")),
    ("bin/hello.sh", 0o755, include_str!("init/hello.sh")),
    ("README.md", 0o644, include_str!("init/README.md")),
];

/// Longest name: it becomes a folder and part of repositories.
const MAX_NAME: usize = 64;

/// Write a small working add-on to start from.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Nothing that exists is overwritten. What is written can be checked and built as it is.

Examples:
  addonfs init backup-tools                 # ./backup-tools
  addonfs init backup-tools addons/backup   # there instead
  addonfs validate backup-tools
  addonfs test backup-tools --base docker.io/library/busybox:1.37 --run"
)]
pub(crate) struct InitArgs {
    /// The add-on's name: a-z, 0-9, - _ and ., starting with a letter or digit
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
    /// The folder [default: ./NAME]
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

fn name(text: &str) -> Result<String, String> {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let fine = text.bytes().next().is_some_and(letter)
        && text.len() <= MAX_NAME
        && text.bytes().all(|byte| letter(byte) || b"-_.".contains(&byte));
    match fine {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "use a-z, 0-9, -, _ and ., starting with a letter or digit, at most {MAX_NAME} of them"
        )),
    }
}

/// Writes the files.
pub(crate) fn run(args: InitArgs) -> anyhow::Result<ExitCode> {
    let dir = args.dir.unwrap_or_else(|| PathBuf::from(&args.name));
    let there: Vec<PathBuf> = FILES
        .iter()
        .map(|(path, ..)| dir.join(path))
        .filter(|path| path.symlink_metadata().is_ok())
        .collect();
    if let [first, ..] = there.as_slice() {
        anyhow::bail!("{} exists already: nothing was written", first.display());
    }
    for (path, mode, content) in FILES {
        let content = content.replace("@NAME@", &args.name).replace("@DIR@", &dir.display().to_string());
        write(&dir.join(path), mode, &content)?;
    }
    writeln!(std::io::stdout(), "{}", dir.display())?;
    eprintln!(
        "next: addonfs validate {0}; addonfs test {0} --base docker.io/library/busybox:1.37 --run",
        dir.display()
    );
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, mode: u32, content: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}
