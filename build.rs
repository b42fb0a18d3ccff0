//! Builds the program that the mount serves as `run`, `plan`, `wait` and `follow`: a few kilobytes of static ELF
//! without std and without a C library (sources and their map: `src/runner/main.rs`). It is another program than
//! addonfs, for the same target, so rustc is called on it directly; the result is `$OUT_DIR/runner`.

use std::env;
use std::path::PathBuf;
use std::process::{Command, exit};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/runner");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    if let Err(reason) = build() {
        println!("cargo::error=the runner of the mount's executables was not built: {reason}");
        exit(1);
    }
}

fn build() -> Result<(), String> {
    let target = variable("TARGET")?;
    let (os, arch) = (variable("CARGO_CFG_TARGET_OS")?, variable("CARGO_CFG_TARGET_ARCH")?);
    if os != "linux" || !matches!(arch.as_str(), "x86_64" | "aarch64") {
        return Err(format!("{target} is not supported: x86_64 and aarch64 Linux are"));
    }
    let root = variable("CARGO_MANIFEST_DIR")?;
    let output = PathBuf::from(variable("OUT_DIR")?).join("runner");
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc
        .args(["--crate-name", "runner", "--crate-type", "bin", "--edition", "2024", "--target", &target])
        .args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "codegen-units=1", "-C", "debuginfo=0"])
        .args(["-C", "strip=symbols", "-C", "force-unwind-tables=no", "-C", "overflow-checks=no"])
        // A program without relocations: there is no loader that could apply them.
        .args(["-C", "relocation-model=static", "-C", "target-feature=+crt-static"])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib", "-C", "link-arg=-static"])
        // One segment for code and constants instead of one each: three pages less on the mount.
        .args(["-C", "link-arg=-Wl,-z,noseparate-code,-z,norelro,--build-id=none"])
        // The same bytes wherever they are built.
        .arg(format!("--remap-path-prefix={root}=addonfs"))
        .arg("-o")
        .arg(&output)
        .arg(PathBuf::from(&root).join("src/runner/main.rs"));
    // On musl rustc brings start files of its own.
    if env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "musl") {
        rustc.args(["-C", "link-self-contained=no"]);
    }
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.args(["-C", &format!("linker={linker}")]);
    }
    let result = rustc.output().map_err(|error| format!("rustc did not start: {error}"))?;
    // Every line of an instruction to cargo is an instruction of its own.
    let words = String::from_utf8_lossy(&result.stderr).trim_end().replace('\n', "\ncargo::warning=");
    if !result.status.success() {
        return Err(words);
    }
    if !words.is_empty() {
        println!("cargo::warning={words}");
    }
    Ok(())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("{name} is not set: build with cargo"))
}
