//! config.json's seccomp as a classic BPF program (seccomp(2), linux/filter.h).
//!
//! The architecture is judged first, then calls that depend on an argument, then ranges of call numbers, then the
//! default. What the document may say is what `oci::seccomp` says: allow and errno, one condition a rule.
#![allow(unsafe_code)] // prctl(PR_SET_SECCOMP) takes a pointer.

use std::collections::BTreeMap;

use nix::libc::{self, sock_filter};
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::Failure;

/// Offsets in `struct seccomp_data`: number, architecture, and the first of six 64-bit arguments.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `AUDIT_ARCH_*` of linux/audit.h: both are little-endian, so an argument's low half comes first.
#[cfg(target_arch = "x86_64")]
const NATIVE: Option<u32> = Some(0xc000_003e);
#[cfg(target_arch = "aarch64")]
const NATIVE: Option<u32> = Some(0xc000_00b7);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const NATIVE: Option<u32> = None;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const ABOVE: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// The kernel takes no longer programs (BPF_MAXINSNS).
const LENGTH_MAX: usize = 4096;

fn op(code: u32, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: u16::try_from(code).unwrap_or(u16::MAX), jt, jf, k }
}

/// The program of this document for this machine.
pub(super) fn program(document: &LinuxSeccomp) -> Result<Vec<sock_filter>, Failure> {
    let native = NATIVE.ok_or_else(|| Failure::Setup("no seccomp filter for this architecture".into()))?;
    let default = verdict(document.default_action(), document.default_errno_ret())?;
    let mut plain: BTreeMap<u32, u32> = BTreeMap::new();
    let mut conditional: BTreeMap<u32, Vec<sock_filter>> = BTreeMap::new();
    for rule in document.syscalls().iter().flatten() {
        let answer = verdict(rule.action(), rule.errno_ret())?;
        for number in rule.names().iter().filter_map(|name| number(name)) {
            match condition(rule)? {
                None => drop(plain.insert(number, answer)),
                Some(argument) => conditional.entry(number).or_default().extend(block(argument, answer)?),
            }
        }
    }
    let mut program = vec![
        op(LOAD, ARCHITECTURE),
        jump(EQUAL, native, 1, 0),
        op(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        op(LOAD, NUMBER),
    ];
    for (number, mut blocks) in conditional {
        blocks.push(op(RETURN, default));
        program.push(jump(EQUAL, number, 0, distance(blocks.len())?));
        program.append(&mut blocks);
    }
    for (first, last, answer) in ranges(&plain) {
        match first == last {
            true => program.push(jump(EQUAL, first, 0, 1)),
            false => program.extend([jump(AT_LEAST, first, 0, 2), jump(ABOVE, last, 1, 0)]),
        }
        program.push(op(RETURN, answer));
    }
    program.push(op(RETURN, default));
    match program.len() <= LENGTH_MAX {
        true => Ok(program),
        false => Err(Failure::Setup("the seccomp filter is too long".into())),
    }
}

/// Puts the program in force, for ever. Needs no_new_privs.
pub(super) fn install(program: &[sock_filter]) -> Result<(), Failure> {
    let len = u16::try_from(program.len()).map_err(|e| Failure::setup("seccomp", e))?;
    // The kernel only reads through the pointer.
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: `program` names `len` instructions that live across the call.
    let answer =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0) };
    nix::errno::Errno::result(answer).map(drop).map_err(|e| Failure::setup("seccomp", e))
}

/// A call by its name; `None` for one that this architecture does not have.
fn number(name: &str) -> Option<u32> {
    let call: syscalls::Sysno = name.parse().ok()?;
    u32::try_from(call.id()).ok()
}

fn verdict(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, Failure> {
    match (action, errno) {
        (LinuxSeccompAction::ScmpActAllow, _) => Ok(libc::SECCOMP_RET_ALLOW),
        (LinuxSeccompAction::ScmpActErrno, Some(errno)) => {
            Ok(libc::SECCOMP_RET_ERRNO | (errno & libc::SECCOMP_RET_DATA))
        }
        (other, _) => Err(Failure::Setup(format!("config.json: seccomp action {other:?} is not offered"))),
    }
}

fn condition(rule: &LinuxSyscall) -> Result<Option<&LinuxSeccompArg>, Failure> {
    match rule.args().as_deref().unwrap_or_default() {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        _ => Err(Failure::Setup("config.json: seccomp rules have one condition here".into())),
    }
}

/// Returns `answer` if the condition holds, else runs on behind the block.
fn block(argument: &LinuxSeccompArg, answer: u32) -> Result<Vec<sock_filter>, Failure> {
    let index = u32::try_from(argument.index()).ok().filter(|&i| i < 6);
    let low = ARGUMENTS + 8 * index.ok_or_else(|| Failure::Setup("config.json: no such argument".into()))?;
    let halves = |value: u64| ((value & 0xffff_ffff) as u32, (value >> 32) as u32);
    let (value_low, value_high) = halves(argument.value());
    // (offset, mask, comparison, value, whether a hit means the condition fails)
    let checks = match argument.op() {
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            let (low_wanted, high_wanted) = halves(argument.value_two().unwrap_or_default());
            vec![(low + 4, value_high, EQUAL, high_wanted, false), (low, value_low, EQUAL, low_wanted, false)]
        }
        LinuxSeccompOperator::ScmpCmpEq => {
            vec![(low + 4, u32::MAX, EQUAL, value_high, false), (low, u32::MAX, EQUAL, value_low, false)]
        }
        LinuxSeccompOperator::ScmpCmpLt if value_high == 0 => {
            vec![(low + 4, u32::MAX, EQUAL, 0, false), (low, u32::MAX, AT_LEAST, value_low, true)]
        }
        other => {
            return Err(Failure::Setup(format!("config.json: seccomp operator {other:?} is not offered")));
        }
    };
    let mut block = vec![op(RETURN, answer)];
    for (offset, mask, comparison, value, fails) in checks.into_iter().rev() {
        let away = distance(block.len())?;
        let (jt, jf) = if fails { (away, 0) } else { (0, away) };
        let check = [op(LOAD, offset), op(AND, mask), jump(comparison, value, jt, jf)];
        block.splice(0..0, check);
    }
    Ok(block)
}

fn distance(instructions: usize) -> Result<u8, Failure> {
    u8::try_from(instructions).map_err(|e| Failure::setup("seccomp", e))
}

/// Neighbouring numbers of one verdict as (first, last, verdict).
fn ranges(calls: &BTreeMap<u32, u32>) -> Vec<(u32, u32, u32)> {
    let mut ranges: Vec<(u32, u32, u32)> = Vec::new();
    for (&number, &answer) in calls {
        match ranges.last_mut() {
            Some((_, last, same)) if *last + 1 == number && *same == answer => *last = number,
            _ => ranges.push((number, number, answer)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::oci::seccomp;

    /// What the kernel does with a program (linux/filter.h), for the instructions used here.
    fn judge(program: &[sock_filter], architecture: u32, call: u32, arguments: [u64; 6]) -> u32 {
        let mut data = vec![call, architecture, 0, 0];
        data.extend(arguments.iter().flat_map(|a| [*a as u32, (*a >> 32) as u32]));
        let (mut at, mut a) = (0usize, 0u32);
        loop {
            let i = program[at];
            at += 1;
            let goes = match u32::from(i.code) {
                LOAD => {
                    a = data[i.k as usize / 4];
                    continue;
                }
                AND => {
                    a &= i.k;
                    continue;
                }
                RETURN => return i.k,
                EQUAL => a == i.k,
                AT_LEAST => a >= i.k,
                ABOVE => a > i.k,
                other => panic!("instruction {other}"),
            };
            at += usize::from(if goes { i.jt } else { i.jf });
        }
    }

    #[test]
    fn every_name_gets_the_verdict_of_the_document() {
        let document = seccomp::filter().unwrap();
        let program = program(&document).unwrap();
        let native = NATIVE.unwrap();
        let ask =
            |name: &str, first: u64| judge(&program, native, number(name).unwrap(), [first, 0, 0, 0, 0, 0]);
        let errno = |number: u32| libc::SECCOMP_RET_ERRNO | number;
        let mut known = 0;
        for rule in document.syscalls().iter().flatten().filter(|rule| rule.args().is_none()) {
            let expected = verdict(rule.action(), rule.errno_ret()).unwrap();
            for name in rule.names().iter().filter(|name| number(name).is_some()) {
                assert_eq!(ask(name, 0), expected, "{name}");
                known += 1;
            }
        }
        assert!(known > 250, "only {known} calls have a number");
        assert_eq!(ask("clone3", 0), errno(38));
        assert_eq!(ask("clone", 0x11), libc::SECCOMP_RET_ALLOW);
        assert_eq!(ask("clone", 0x1000_0011), errno(38), "CLONE_NEWUSER");
        assert_eq!(ask("personality", 0xffff_ffff), libc::SECCOMP_RET_ALLOW);
        assert_eq!(ask("personality", 0x1_0000_0000), errno(38));
        assert_eq!(ask("personality", 0x4_0000), errno(38), "ADDR_NO_RANDOMIZE");
        for (family, answer) in [(2, libc::SECCOMP_RET_ALLOW), (38, errno(38)), (1 << 32, errno(38))] {
            assert_eq!(ask("socket", family), answer, "family {family}");
        }
        let read = number("read").unwrap();
        assert_eq!(judge(&program, 0x4000_0003, read, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS, "32-bit code");
        assert_eq!(judge(&program, native, read | 0x4000_0000, [0; 6]), errno(38), "x32");
    }

    /// Names that the table lacks would be refused where libseccomp allows them.
    #[test]
    fn calls_of_everyday_programs_have_numbers() {
        for name in ["openat2", "statx", "faccessat2", "close_range", "epoll_pwait2", "futex_waitv", "rseq"] {
            assert!(number(name).is_some(), "{name}");
        }
    }
}
