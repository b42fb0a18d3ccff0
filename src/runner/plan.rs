//! `plan`: what would run with these arguments. Runs nothing.

use crate::REFUSED;
use crate::control::{self, MAX_LINE};
use crate::given::Given;
use crate::json::push;
use crate::place::Place;
use crate::sys::{Errno, O_RDWR};
use crate::text::complain;
use crate::words::{Options, Words};

pub(crate) fn plan(place: &Place, words: Words<'_>) -> i32 {
    let options = match words.options() {
        Ok(options) => options,
        Err(reason) => return complain(&[reason.as_bytes()]),
    };
    words.reveal(place, &options);
    if options.help {
        return help(place);
    }
    let given = match Given::take(&words, &options) {
        Ok(given) => given,
        Err(code) => return code,
    };
    let mut line = [0u8; MAX_LINE];
    let len = verb(&options, &mut line).and_then(|at| push_line(given.bytes(), &mut line, at));
    // A line is below the limit with its newline.
    match len.and_then(|len| push(b"\n", &mut line, len)).filter(|len| *len < MAX_LINE) {
        Some(len) => ask(place, line.get(..len).unwrap_or_default()),
        None => complain(&[
            b"the arguments of a plan must be below 4 KiB: for larger ones make a run, write its args.json, ",
            b"and read its plan.json",
        ]),
    }
}

fn push_line(json: &[u8], line: &mut [u8], at: usize) -> Option<usize> {
    let end = push(json, line, at)?;
    unbroken(line.get_mut(at..end)?);
    Some(end)
}

/// A command ends at its first newline. In JSON one can only be white space between values.
fn unbroken(json: &mut [u8]) {
    json.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
}

/// `plan `, and what is asked for beside the arguments.
fn verb(options: &Options<'_>, line: &mut [u8]) -> Option<usize> {
    let mut at = push(b"plan ", line, 0)?;
    for (option, value) in [(b"-p ", options.profile), (b"-l ", options.limits)] {
        if let Some(value) = value {
            at = push(option, line, at)?;
            at = push(value, line, at)?;
            at = push(b" ", line, at)?;
        }
    }
    Some(at)
}

/// `--help` of `run` and `plan`: the job tells it itself.
pub(crate) fn help(place: &Place) -> i32 {
    match place.open(b"ctl", O_RDWR) {
        Ok(_) => ask(place, b"help\n"),
        // Who may not run the job may still read what it takes.
        Err(Errno::EACCES) => complain(&[
            b"usage: run [-i] [-p PROFILE] [-l LIMITS] [--args-json JSON|@FILE|-] [--arg-file NAME=PATH] [--name VALUE ...]; you may not run this job, ",
            b"its arguments are in argspec.json beside it",
        ]),
        Err(errno) => complain(&[b"cannot open the ctl of the job: ", errno.words()]),
    }
}

fn ask(place: &Place, line: &[u8]) -> i32 {
    let ctl = match place.open(b"ctl", O_RDWR) {
        Ok(ctl) => ctl,
        Err(Errno::EACCES) => {
            return complain(&[b"you may not run this job: its ctl and runs/ belong to a group"]);
        }
        Err(errno) => return complain(&[b"cannot open the ctl of the job: ", errno.words()]),
    };
    match control::say(ctl, line) {
        Ok(()) => {
            control::reply(ctl, 1);
            0
        }
        Err(errno) => {
            if control::reply(ctl, 2) == 0 {
                complain(&[b"refused: ", errno.words()]);
            }
            REFUSED
        }
    }
}
