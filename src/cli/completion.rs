//! Completion in shells: `addonfs completion SHELL` prints what a shell has to be told once; from then on it asks this
//! program at each Tab (`ADDONFS_COMPLETE` is set then), so that jobs, runs and sources are those of the mount.
//!
//! Which names a word stands for is told by its name in the usage: JOB, RUN, SOURCE. Behind the job of `run` and `plan`
//! the options are the job's own, made from its argspec.json. Nothing is read but small files of the mount, whose reads
//! never wait.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, Command, CommandFactory as _, ValueHint};
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::Shells;

use super::args::Cli;
use super::job_files::{MountArg, Tree, text};
use crate::policy::arguments::{ArgSpec, Flag};

/// Set by the shell's function: the shell's name.
const VARIABLE: &str = "ADDONFS_COMPLETE";

/// Print what a shell needs to complete commands, options, jobs and their arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  addonfs completion bash > /usr/share/bash-completion/completions/addonfs
  addonfs completion zsh > /usr/share/zsh/vendor-completions/_addonfs
  addonfs completion fish > /usr/share/fish/vendor_completions.d/addonfs.fish
  source <(addonfs completion bash)               # for this shell only")]
pub(crate) struct CompletionArgs {
    /// The shell
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

/// Prints it.
pub(crate) fn run(args: CompletionArgs) -> anyhow::Result<ExitCode> {
    let shells = Shells::builtins();
    let shell = shells.completer(&args.shell);
    let shell = shell.ok_or_else(|| anyhow::anyhow!("{} is not known", args.shell))?;
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "addonfs", "addonfs", "addonfs", &mut script)?;
    std::io::stdout().lock().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Answers a shell that asks, and ends; returns if none does.
pub(crate) fn answer() {
    if std::env::var_os(VARIABLE).is_some() {
        CompleteEnv::with_factory(|| command(&std::env::args_os().collect::<Vec<_>>()))
            .var(VARIABLE)
            .complete();
    }
}

/// The commands, knowing the mount; for `words`, of which all up to the first `--` are the shell's.
fn command(words: &[OsString]) -> Command {
    let typed: Vec<String> = words
        .iter()
        .skip_while(|word| *word != "--")
        .skip(2)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let mount = value_of("--mount", &typed);
    let mut command = Cli::command();
    if let Some((of, job)) = job_of(&typed, &command)
        && let Some(spec) = tree(&mount).and_then(|tree| argspec(&tree, job))
    {
        command = command.mut_subcommand(of, |command| of_job(command, &spec));
    }
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    names.iter().fold(command, |command, name| {
        command.mut_subcommand(name, |sub| sub.mut_args(|arg| known(arg, &mount)))
    })
}

/// The value of an option before the job.
fn value_of(option: &str, typed: &[String]) -> Option<PathBuf> {
    let apart = typed.iter().position(|word| word == option).and_then(|place| typed.get(place + 1));
    let joined = || typed.iter().find_map(|word| word.strip_prefix(option)?.strip_prefix('='));
    apart.map(String::as_str).or_else(joined).map(PathBuf::from)
}

/// Which names a word stands for, by its name in the usage.
fn known(arg: Arg, mount: &Option<PathBuf>) -> Arg {
    let names = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    let mount = mount.clone();
    match names.as_deref() {
        Some("JOB") => arg.add(ArgValueCandidates::new(move || jobs(&mount).unwrap_or_default())),
        Some("RUN") => arg.add(ArgValueCandidates::new(move || runs(&mount).unwrap_or_default())),
        Some("SOURCE" | "SOURCES") => {
            arg.add(ArgValueCandidates::new(move || sources(&mount).unwrap_or_default()))
        }
        Some("FILE" | "FILES") => arg.value_hint(ValueHint::FilePath),
        Some("DIR") => arg.value_hint(ValueHint::DirPath),
        Some("IMAGE|DIR") => arg.value_hint(ValueHint::AnyPath),
        _ => arg,
    }
}

fn tree(mount: &Option<PathBuf>) -> Option<Tree> {
    MountArg::at(mount.clone()).tree().ok()
}

fn jobs(mount: &Option<PathBuf>) -> Option<Vec<CompletionCandidate>> {
    let jobs = tree(mount)?.jobs().ok()?;
    let candidate = |job: &serde_json::Value| {
        let about = [text(job, "/description"), text(job, "/name")];
        let about = about.into_iter().find(|words| !words.is_empty());
        CompletionCandidate::new(text(job, "/id")).help(about.map(|words| shown(&words).into()))
    };
    Some(jobs.iter().map(candidate).collect())
}

fn runs(mount: &Option<PathBuf>) -> Option<Vec<CompletionCandidate>> {
    let runs = tree(mount)?.runs(None).ok()?;
    let candidate = |run: &super::job_files::Record| {
        let id = format!("{}/{}", run.text("/job"), run.text("/name"));
        CompletionCandidate::new(id).help(Some(run.text("/state").into()))
    };
    Some(runs.iter().map(candidate).collect())
}

fn sources(mount: &Option<PathBuf>) -> Option<Vec<CompletionCandidate>> {
    let names = tree(mount)?.sources().ok()?;
    Some(names.into_iter().map(CompletionCandidate::new).collect())
}

/// One line without control characters: it is a stranger's text.
fn shown(words: &str) -> String {
    words.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect()
}

/// The command and the job of `run [options] JOB …`, once the job is behind the cursor's word.
fn job_of<'t>(typed: &'t [String], cli: &Command) -> Option<(&'t str, &'t str)> {
    let (of, rest) = typed.split_first().filter(|(of, _)| matches!(of.as_str(), "run" | "plan"))?;
    let options = cli.find_subcommand(of)?;
    let takes_value = |option: &str| {
        let known = options.get_arguments().find(|arg| arg.get_long() == option.strip_prefix("--"));
        known.is_some_and(|arg| arg.get_action().takes_values())
    };
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            option if option.starts_with("--") && takes_value(option) => {
                words.next();
            }
            option if option.starts_with('-') => {}
            job => return words.next().map(|_| (of.as_str(), job)),
        }
    }
    None
}

fn argspec(tree: &Tree, job: &str) -> Option<ArgSpec> {
    let bytes = std::fs::read(tree.job(job).ok()?.join("argspec.json")).ok()?;
    ArgSpec::compile(serde_json::from_slice(&bytes).ok()?).ok()
}

/// `run` or `plan` of one job: our own options, hidden because they stood before it, and the job's.
fn of_job(command: Command, spec: &ArgSpec) -> Command {
    let flags = spec.flags();
    let taken = |name: &str| flags.iter().any(|flag| flag.name == name);
    let mut made = Command::new(command.get_name().to_owned()).disable_help_flag(true);
    for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
        if arg.get_long().is_none_or(|long| !taken(long)) && arg.get_long() != Some("help") {
            made = made.arg(arg.clone().hide(true));
        }
    }
    made = made.arg(Arg::new("job").value_name("JOB"));
    let pairs: Vec<String> = flags.iter().map(|flag| format!("{}=", flag.argument)).collect();
    let pair = ArgValueCandidates::new(move || {
        pairs.iter().map(|pair| CompletionCandidate::new(pair.clone()).hide(true)).collect()
    });
    made = made.arg(Arg::new("words").num_args(0..).add(pair));
    for (name, hint, help) in [
        ("args-json", ValueHint::FilePath, "all arguments as JSON, @FILE, or -"),
        ("arg-file", ValueHint::FilePath, "NAME=PATH: the content of a file is the argument's value"),
    ] {
        if !taken(name) {
            made = made.arg(Arg::new(format!("own {name}")).long(name).value_hint(hint).help(help));
        }
    }
    flags.into_iter().fold(made, |command, flag| command.arg(option(flag)))
}

fn option(flag: Flag) -> Arg {
    let arg = Arg::new(format!("argument {}", flag.name)).long(flag.name).help(shown(&flag.description));
    match flag {
        Flag { is_switch: true, .. } => arg.action(ArgAction::SetTrue),
        Flag { values, .. } if !values.is_empty() => arg.value_parser(PossibleValuesParser::new(values)),
        Flag { is_path: true, .. } => arg.value_hint(ValueHint::AnyPath),
        _ => arg.action(ArgAction::Append),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::CommandFactory as _;

    use super::{VARIABLE, command, job_of};

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_job_is_what_follows_our_options() {
        let cli = super::Cli::command();
        assert_eq!(job_of(&words("run a/b "), &cli), Some(("run", "a/b")));
        let line = words("plan --mount /m --profile=secure --limits cpu=1 a/b --x");
        assert_eq!(job_of(&line, &cli), Some(("plan", "a/b")));
        for none in ["run a/b", "run --mount /m", "logs a/b x", ""] {
            assert_eq!(job_of(&words(none), &cli), None, "{none}");
        }
        assert!(VARIABLE.starts_with("ADDONFS_"));
    }

    /// A folder that looks like a mount, with one job.
    fn mount() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("t/job")).unwrap();
        std::fs::create_dir_all(dir.path().join(".addonfs/sources/backup")).unwrap();
        std::fs::write(dir.path().join(".addonfs/jobs.json"), "[{\"id\": \"t/job\", \"name\": \"J\"}]")
            .unwrap();
        std::fs::write(dir.path().join("t/job/job.json"), "{}").unwrap();
        let argspec = r#"{"type": "object", "properties": {
            "mode": {"type": "string", "enum": ["quick", "full"]}, "mount": {"type": "string"},
            "dry_run": {"type": "boolean"}}}"#;
        std::fs::write(dir.path().join("t/job/argspec.json"), argspec).unwrap();
        dir
    }

    /// What is offered for the last word.
    fn offered(line: &[&str]) -> Vec<String> {
        let words: Vec<OsString> =
            ["addonfs", "--", "addonfs"].iter().chain(line).map(OsString::from).collect();
        let mut command = command(&words);
        let args: Vec<OsString> = words[2..].to_vec();
        let index = args.len() - 1;
        let found = clap_complete::engine::complete(&mut command, args, index, None).unwrap();
        found.iter().map(|one| one.get_value().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn offers_what_is_there() {
        let dir = mount();
        let at = dir.path().to_str().unwrap();
        assert_eq!(offered(&["run", "--mount", at, "t"]), ["t/job"]);
        assert_eq!(offered(&["pull", "--mount", at, "b"]), ["backup"]);
        let mut flags = offered(&["run", "--mount", at, "t/job", "--"]);
        flags.sort();
        assert_eq!(flags, ["--arg-file", "--args-json", "--dry-run", "--mode", "--mount", "--no-dry-run"]);
        assert_eq!(offered(&["run", "--mount", at, "t/job", "--mode", ""]), ["quick", "full"]);
        assert_eq!(offered(&["plan", "--mount", at, "t/job", "--mode=f"]), ["--mode=full"]);
        assert_eq!(offered(&["plan", "--mount", at, "t/job", "mo"]), ["mode=", "mount="]);
        assert_eq!(offered(&["run", "--mount", "/no/such", "t"]), [""; 0]);
        assert_eq!(offered(&["valid"]), ["validate"]);
    }
}
