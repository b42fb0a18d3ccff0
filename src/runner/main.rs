//! The program behind `run` and `plan` of a job's folder, `wait` and `follow` of a run's folder.
//!
//! It is served from the mount itself, one inode under four names, so it is small: no std, no C library, no
//! allocator, raw system calls. In: its own path (which job, what to do), the caller's words, the files beside it.
//! Out: the job's output on stdout and stderr and its exit code; 125 where addonfs refuses, 124 at a timeout.
//! It must not know of the daemon: everything goes through the files of the mount, opened relative to the
//! folder, and no read of them ever blocks.
//!
//! [`entry`] the first instruction, argv; [`place`] which folder and which name; [`words`] hiding the arguments, [`given`]
//! reading and encoding them; [`run`], [`plan`], [`watch`] (wait and follow) the verbs; [`pump`] growing files to descriptors;
//! [`control`] the `ctl` conversation; [`signals`]; [`json`], [`text`], [`memory`], [`sys`] the ground.

#![no_std]
#![no_main]
// Keeps the compiler from turning the loops of `memory` into calls of themselves.
#![no_builtins]
#![deny(unsafe_op_in_unsafe_fn)]

mod control;
mod entry;
mod given;
mod json;
mod memory;
mod place;
mod plan;
mod pump;
mod run;
mod signals;
mod sys;
mod text;
mod watch;
mod words;

use entry::Start;
use text::complain;

/// addonfs refused, or the run is lost.
const REFUSED: i32 = 125;

/// What the process ends with.
fn main(start: &Start) -> i32 {
    // Before anything else: whoever lists processes now sees no argument.
    let words = match words::Words::take(start) {
        Ok(words) => words,
        Err(errno) => return complain(&[b"no memory for the arguments: ", errno.words()]),
    };
    let place = match place::find(start) {
        Ok(place) => place,
        Err(reason) => return complain(&[reason.as_bytes()]),
    };
    match place.name() {
        b"run" => run::run(&place, words),
        b"plan" => plan::plan(&place, words),
        b"wait" => watch::wait(&place),
        b"follow" => watch::follow(&place),
        _ => complain(&[
            b"this program is run, plan, wait or follow of an addonfs mount, and does nothing elsewhere",
        ]),
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::write_all(2, b"addonfs: internal error of the runner\n");
    sys::exit(REFUSED)
}

/// The precompiled `core` names the routine that unwinds it. Nothing unwinds here: a panic ends the process.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
