//! The grammar of every job and run `ctl`: bytes of one write in, commands or the exact reason why not out. Pure.
//!
//! A write holds one or more commands, one a line; all are understood or none. A command is a verb, then its words
//! or one JSON object (which may span lines: `printf 'run %s' "$(cat args.json)" > ctl` works).
//!
//! | where | command |
//! |---|---|
//! | job | `run [-p PROFILE] [-l LIMITS] [WORDS \| {…}]`, `plan` likewise, `help` |
//! | run | `start [id=TOKEN] [profile=PROFILE] [limits=LIMITS] [stdin]`, `cancel`, `kill [SIGNAL]`, `eof` |
//!
//! LIMITS are `cpu=0.5,memory=512Mi,timeout=10m`, or some of them.
//!
//! Words are separated by blanks; `'…'`, `"…"` and `\` quote as in a shell, nothing is expanded. They may also be one
//! JSON array of strings on one line: what the mount's own `plan` writes, because that can hold any word, newlines too.

use std::str::FromStr;

use nix::sys::signal::Signal;
use serde_json::{Map, Value};

use super::error::JobError;
use super::plan::Wishes;
use super::state::Verb;
use crate::policy::addon::Resources;
use crate::policy::arguments::Given;

/// Most commands in one write. A write is below 4096 bytes, and more than this is a mistake.
pub const MAX_COMMANDS: usize = 64;
/// Longest start token: room for a UUID or a SHA-256 in hex with a prefix.
pub const MAX_TOKEN: usize = 128;

/// A command of a run's `ctl`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Queue the run.
    Start {
        /// The same token again is ok, another one is refused: a start may arrive twice.
        token: Option<String>,
        /// Give the job the run's `stdin` instead of /dev/null.
        stdin: bool,
        /// What is asked for beside the arguments.
        wishes: Wishes,
    },
    /// End it: TERM, grace, KILL.
    Cancel,
    /// Send a signal to the job's process.
    Kill(i32),
    /// End of the job's standard input.
    Eof,
}

impl Command {
    /// Its verb.
    pub const fn verb(&self) -> Verb {
        match self {
            Self::Start { .. } => Verb::Start,
            Self::Cancel => Verb::Cancel,
            Self::Kill(_) => Verb::Kill,
            Self::Eof => Verb::Eof,
        }
    }
}

/// What a caller asks of a job.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The arguments.
    pub given: Given,
    /// What is asked for beside them.
    pub wishes: Wishes,
}

impl Asked {
    /// Nothing but arguments.
    pub fn plainly(given: Given) -> Self {
        Self { given, wishes: Wishes::default() }
    }
}

/// A command of a job's `ctl`.
#[derive(Debug, Clone)]
pub enum JobCommand {
    /// Make a run and start it.
    Run(Asked),
    /// Say what would run.
    Plan(Asked),
    /// How the job is called.
    Help,
}

/// Reads the commands of one write to a run's `ctl`.
pub fn parse_run(bytes: &[u8]) -> Result<Vec<Command>, JobError> {
    commands(bytes, |verb, rest| match verb {
        "start" => start(&words(rest)?),
        "cancel" => no_words("cancel", rest).map(|()| Command::Cancel),
        "kill" => kill(&words(rest)?),
        "eof" => no_words("eof", rest).map(|()| Command::Eof),
        other => Err(unknown(
            other,
            "start [id=TOKEN] [profile=PROFILE] [limits=LIMITS] [stdin], cancel, kill [SIGNAL], eof",
        )),
    })
}

/// Reads the commands of one write to a job's `ctl`.
pub fn parse_job(bytes: &[u8]) -> Result<Vec<JobCommand>, JobError> {
    commands(bytes, |verb, rest| match verb {
        "run" => asked(rest).map(JobCommand::Run),
        "plan" => asked(rest).map(JobCommand::Plan),
        "help" => no_words("help", rest).map(|()| JobCommand::Help),
        other => Err(unknown(
            other,
            "run, plan (each with -p PROFILE and -l LIMITS if need be, and words or one JSON object), help",
        )),
    })
}

/// Cuts the write into (verb, rest) pairs and reads each.
fn commands<T>(bytes: &[u8], read: impl Fn(&str, &str) -> Result<T, JobError>) -> Result<Vec<T>, JobError> {
    let text = std::str::from_utf8(bytes).map_err(|_| invalid("the command is not UTF-8"))?;
    if text.contains('\0') {
        return Err(invalid("the command holds a NUL byte"));
    }
    let mut found = Vec::new();
    let mut left = text.trim_start();
    while !left.is_empty() {
        if found.len() == MAX_COMMANDS {
            return Err(invalid(format!("more than {MAX_COMMANDS} commands in one write")));
        }
        let verb_end = left.find(|c: char| c.is_whitespace() || c == '{').unwrap_or(left.len());
        let (verb, rest) = left.split_at(verb_end);
        let rest_end = end_of_command(rest)?;
        let (rest, next) = rest.split_at(rest_end);
        found.push(read(verb, rest.trim())?);
        left = next.trim_start();
    }
    if found.is_empty() {
        return Err(invalid("the write holds no command"));
    }
    Ok(found)
}

/// Where the command ends: after its JSON object, or at the end of the line.
fn end_of_command(rest: &str) -> Result<usize, JobError> {
    let line_end = rest.find('\n').unwrap_or(rest.len());
    let mut behind = rest;
    while let Some((_, _, next)) = option(behind) {
        behind = next;
    }
    let blank = rest.len() - behind.trim_start_matches([' ', '\t']).len();
    if !rest[blank..].starts_with('{') {
        return Ok(line_end);
    }
    let mut values = serde_json::Deserializer::from_str(&rest[blank..]).into_iter::<Value>();
    match values.next() {
        Some(Ok(_)) => {}
        Some(Err(e)) => return Err(invalid(format!("the JSON object is malformed: {e}"))),
        None => return Err(invalid("the JSON object is missing")),
    }
    let end = blank + values.byte_offset();
    let tail = rest[end..].split('\n').next().unwrap_or("").trim();
    // The tail is not quoted: it may be a value that went astray.
    if tail.is_empty() { Ok(end) } else { Err(invalid("more text comes after the JSON object")) }
}

fn asked(mut rest: &str) -> Result<Asked, JobError> {
    let mut wishes = Wishes::default();
    while let Some((letter, value, behind)) = option(rest) {
        match letter {
            'p' if wishes.profile.is_none() => wishes.profile = Some(value.parse()?),
            'l' if wishes.limits == Resources::default() => wishes.limits = limits(value)?,
            _ => return Err(invalid(format!("-{letter} stands there twice"))),
        }
        rest = behind;
    }
    Ok(Asked { given: given(rest.trim())?, wishes })
}

/// `-p NAME` or `-l LIMITS` at the front of a job's command, and what comes behind. No argument of a job looks like it.
fn option(rest: &str) -> Option<(char, &str, &str)> {
    let blank = [' ', '\t'];
    let dashed = rest.trim_start_matches(blank).strip_prefix('-')?;
    let letter = dashed.chars().next().filter(|letter| matches!(letter, 'p' | 'l'))?;
    let behind = dashed.get(1..)?;
    let value = behind.trim_start_matches(blank);
    if value.len() == behind.len() {
        return None;
    }
    let end = value.find(|c: char| c.is_whitespace() || c == '{').unwrap_or(value.len());
    let (value, behind) = value.split_at(end);
    Some((letter, value, behind))
}

fn limits(text: &str) -> Result<Resources, JobError> {
    Resources::parse_request(text).map_err(|error| invalid(error.to_string()))
}

fn given(rest: &str) -> Result<Given, JobError> {
    if rest.starts_with('{') {
        let map: Map<String, Value> =
            serde_json::from_str(rest).map_err(|e| invalid(format!("the JSON object is malformed: {e}")))?;
        return Ok(Given::Json(map));
    }
    if rest.starts_with('[') {
        let words = serde_json::from_str(rest);
        return words.map(Given::Words).map_err(|_| invalid("a JSON array of words must hold strings only"));
    }
    Ok(Given::Words(words(rest)?))
}

fn start(words: &[String]) -> Result<Command, JobError> {
    let (mut token, mut stdin, mut wishes) = (None, false, Wishes::default());
    for word in words {
        match word.split_once('=') {
            Some(("id", value)) if token.is_none() => token = Some(checked_token(value)?),
            Some(("id", _)) => return Err(invalid("start has two ids")),
            Some(("profile", value)) if wishes.profile.is_none() => wishes.profile = Some(value.parse()?),
            Some(("profile", _)) => return Err(invalid("start has two profiles")),
            Some(("limits", value)) if wishes.limits == Resources::default() => {
                wishes.limits = limits(value)?;
            }
            Some(("limits", _)) => return Err(invalid("start has limits twice")),
            None if word == "stdin" => stdin = true,
            _ => {
                return Err(invalid(format!(
                    "start does not know `{}`; it takes id=TOKEN, profile=PROFILE, limits=LIMITS and stdin",
                    short(word)
                )));
            }
        }
    }
    Ok(Command::Start { token, stdin, wishes })
}

fn checked_token(value: &str) -> Result<String, JobError> {
    let ok = !value.is_empty()
        && value.len() <= MAX_TOKEN
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.:-".contains(&b));
    if ok {
        Ok(value.to_owned())
    } else {
        Err(invalid(format!("a start id is 1 to {MAX_TOKEN} of the characters A-Z a-z 0-9 _ . : -")))
    }
}

fn kill(words: &[String]) -> Result<Command, JobError> {
    match words {
        [] => Ok(Command::Kill(Signal::SIGKILL as i32)),
        [word] => signal(word).map(Command::Kill),
        _ => Err(invalid("kill takes one signal")),
    }
}

/// A signal by number (1 to 31) or by name, with or without `SIG`, in any case.
fn signal(word: &str) -> Result<i32, JobError> {
    let no_such = || invalid(format!("there is no signal `{}`; say TERM, INT, KILL, 15 …", short(word)));
    let plain = word.strip_prefix('-').unwrap_or(word);
    if let Ok(number) = plain.parse::<i32>() {
        return Signal::try_from(number).map(|s| s as i32).map_err(|_| no_such());
    }
    let upper = plain.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    Signal::from_str(&name).map(|s| s as i32).map_err(|_| no_such())
}

fn no_words(verb: &str, rest: &str) -> Result<(), JobError> {
    if rest.is_empty() {
        Ok(())
    } else {
        Err(invalid(format!("{verb} takes nothing, `{}` follows it", short(rest))))
    }
}

/// Splits words with a shell's quotes and nothing else of a shell.
fn words(text: &str) -> Result<Vec<String>, JobError> {
    let mut found = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => quoted(&mut chars, word.get_or_insert_default(), '\'', false)?,
            '"' => quoted(&mut chars, word.get_or_insert_default(), '"', true)?,
            '\\' => match chars.next() {
                Some(next) => word.get_or_insert_default().push(next),
                None => return Err(invalid("the line ends with a backslash")),
            },
            c if c.is_whitespace() => found.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    found.extend(word);
    Ok(found)
}

fn quoted(
    chars: &mut std::str::Chars<'_>,
    word: &mut String,
    quote: char,
    escapes: bool,
) -> Result<(), JobError> {
    while let Some(c) = chars.next() {
        match c {
            c if c == quote => return Ok(()),
            '\\' if escapes => match chars.next() {
                Some(next @ ('"' | '\\')) => word.push(next),
                Some(next) => word.extend(['\\', next]),
                None => break,
            },
            c => word.push(c),
        }
    }
    Err(invalid(format!("a {quote} is not closed")))
}

fn unknown(verb: &str, known: &str) -> JobError {
    invalid(format!("there is no command `{}`; known are: {known}", short(verb)))
}

fn invalid(words: impl Into<String>) -> JobError {
    JobError::Invalid(words.into())
}

/// Enough of foreign text to recognise it, without control characters. Never given text that can hold a value.
fn short(text: &str) -> String {
    text.chars().take(40).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rules::Profile;

    fn start_of(token: Option<&str>, stdin: bool) -> Command {
        Command::Start { token: token.map(str::to_owned), stdin, wishes: Wishes::default() }
    }

    #[test]
    fn reads_profiles() {
        let start = |text: &str| match parse_run(text.as_bytes()).unwrap().as_slice() {
            [Command::Start { wishes, .. }] => wishes.profile,
            other => panic!("{other:?}"),
        };
        assert_eq!(start("start id=a profile=permissive stdin"), Some(Profile::Permissive));
        let job = |text: &str| match parse_job(text.as_bytes()).unwrap().as_slice() {
            [JobCommand::Run(asked) | JobCommand::Plan(asked)] => {
                (asked.wishes.profile, format!("{:?}", asked.given))
            }
            other => panic!("{other:?}"),
        };
        let limits = |text: &str| match parse_job(text.as_bytes()).unwrap().as_slice() {
            [JobCommand::Run(asked)] => (asked.wishes.limits.cpu_millis, format!("{:?}", asked.given)),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            limits("run -l cpu=0.5 -p secure {\"a\":1}"),
            limits("run -p secure -l cpu=500m{\"a\":1}")
        );
        assert_eq!(limits("run -l cpu=0.5 x=1"), (Some(500), "Words([\"x=1\"])".to_owned()));
        match parse_run(b"start limits=cpu=1,timeout=1m stdin").unwrap().as_slice() {
            [Command::Start { wishes, stdin: true, .. }] => {
                assert_eq!(wishes.limits, Resources::parse_request("cpu=1,timeout=1m").unwrap());
            }
            other => panic!("{other:?}"),
        }
        for bad in ["run -l cpu=1 -l memory=1Gi", "run -p secure -p secure", "run -l cpu"] {
            assert!(parse_job(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse_run(b"start limits=cpu=1 limits=memory=1").is_err());
        let secure = Some(Profile::Secure);
        assert_eq!(job("run -p secure {\n\"a\":1}"), job("run \t-p  secure{\"a\":1}\n"));
        assert_eq!(job("run -p secure {\"a\":1}").0, secure);
        assert_eq!(job("plan -p secure --db x").0, secure);
        assert_eq!(job("plan -p secure").0, secure);
        assert_eq!(job("plan -p secure [\"-p\"]"), (secure, "Words([\"-p\"])".to_owned()));
        assert_eq!(job("run x=1 -p secure").0, None);
        for (text, word) in [("run -p strict", "unknown"), ("run -p", ""), ("run -p {}", "unknown")] {
            match parse_job(text.as_bytes()) {
                Err(error) => assert!(error.to_string().contains(word), "{text}: {error}"),
                // without a name it is a word like any other, and no argument
                Ok(_) => assert_eq!(text, "run -p"),
            }
        }
        assert!(parse_run(b"start profile=x").unwrap_err().to_string().contains("E_POLICY"));
        assert!(parse_run(b"start profile=secure profile=secure").is_err());
    }

    #[test]
    fn reads_run_commands() {
        let cases: &[(&str, Vec<Command>)] = &[
            ("start\n", vec![start_of(None, false)]),
            ("start", vec![start_of(None, false)]),
            ("start id=a-1 stdin\n", vec![start_of(Some("a-1"), true)]),
            ("start stdin id=x", vec![start_of(Some("x"), true)]),
            ("cancel\n\n", vec![Command::Cancel]),
            ("  kill\n", vec![Command::Kill(9)]),
            ("kill TERM", vec![Command::Kill(15)]),
            ("kill SIGint", vec![Command::Kill(2)]),
            ("kill -15", vec![Command::Kill(15)]),
            ("start\neof\n", vec![start_of(None, false), Command::Eof]),
        ];
        for (text, expected) in cases {
            assert_eq!(&parse_run(text.as_bytes()).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn names_the_reason() {
        let cases = [
            ("", "no command"),
            ("\n \n", "no command"),
            ("begin\n", "no command `begin`"),
            ("start now", "does not know `now`"),
            ("start id=", "1 to 128"),
            ("start id=a id=b", "two ids"),
            ("cancel it", "takes nothing"),
            ("kill FOO", "no signal `FOO`"),
            ("kill 99", "no signal `99`"),
            ("kill 1 2", "one signal"),
            ("start\nfoo\n", "no command `foo`"),
            ("start 'x", "not closed"),
        ];
        for (text, reason) in cases {
            let error = parse_run(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
        assert!(parse_run(b"start\0").unwrap_err().to_string().contains("NUL"));
        assert!(parse_run(b"\xff").unwrap_err().to_string().contains("UTF-8"));
        assert!(parse_run("eof\n".repeat(MAX_COMMANDS + 1).as_bytes()).is_err());
    }

    #[test]
    fn reads_job_commands() {
        let json = |text: &str| match parse_job(text.as_bytes()).unwrap().remove(0) {
            JobCommand::Run(Asked { given: Given::Json(map), .. }) => serde_json::to_string(&map).unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(json(r#"run {"a":1}"#), r#"{"a":1}"#);
        assert_eq!(json("run{\n \"a\": \"x y\"\n}\n"), r#"{"a":"x y"}"#);
        match parse_job(b"plan --db 'my app' --x=\"a\\\"b\" k\\ v\nhelp\n").unwrap().as_slice() {
            [
                JobCommand::Plan(Asked { given: Given::Words(words), wishes: Wishes { profile: None, .. } }),
                JobCommand::Help,
            ] => {
                assert_eq!(words, &["--db", "my app", "--x=a\"b", "k v"]);
            }
            other => panic!("{other:?}"),
        }
        let array = parse_job(b"plan [\"--db\",\"my\\napp\"]\nhelp").unwrap();
        assert!(
            matches!(&array[..], [JobCommand::Plan(Asked { given: Given::Words(words), .. }), JobCommand::Help] if words[1] == "my\napp")
        );
        let two = parse_job(b"run {\"a\":1}\nrun {\"a\":2}").unwrap();
        assert_eq!(two.len(), 2);
    }

    #[test]
    fn refuses_bad_job_commands() {
        let cases = [
            ("run {\"a\":", "malformed"),
            ("run {\"a\":1} x", "after the JSON object"),
            ("run [1]", "strings only"),
            ("run [\"a\"", "strings only"),
            ("help me", "takes nothing"),
            ("start", "no command `start`"),
            ("run {}{}", "after the JSON object"),
        ];
        for (text, reason) in cases {
            let error = parse_job(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn malformed_json_never_echoes_a_value() {
        let error = parse_job(br#"run {"token":"hunter2" "x"}"#).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
