//! The first instruction, and what the kernel left on the stack: argc, argv, environment, auxiliary vector
//! (System V ABI, "Process Initialization").

use core::slice;

/// Key of the auxiliary vector: the path given to execve.
const AT_EXECFN: usize = 31;

// The kernel enters with the vector at the stack pointer, aligned to 16 bytes, and nothing to return to.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {start}",
    "ud2",
    start = sym start,
);
#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, #0",
    "mov x30, #0",
    "mov x0, sp",
    "bl {start}",
    "brk #1",
    start = sym start,
);

extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: called once, by `_start`, with the stack pointer of process entry.
    let start = unsafe { Start::read(stack) };
    crate::sys::exit(crate::main(&start))
}

/// What the process was started with.
pub(crate) struct Start {
    argv: &'static [*mut u8],
    exec_path: Option<&'static [u8]>,
}

impl Start {
    /// # Safety
    ///
    /// `stack` must be the stack pointer at process entry, not yet written to.
    unsafe fn read(stack: *const usize) -> Self {
        // SAFETY: the layout is argc, argv[argc], NULL, envp…, NULL, then pairs of the auxiliary vector up to key 0;
        // all strings are NUL-terminated and live as long as the process.
        unsafe {
            let argc = *stack;
            let argv = slice::from_raw_parts(stack.add(1).cast::<*mut u8>(), argc);
            let mut at = stack.add(1 + argc + 1);
            while *at != 0 {
                at = at.add(1);
            }
            let mut pair = at.add(1);
            let mut exec_path = None;
            while *pair != 0 {
                if *pair == AT_EXECFN {
                    exec_path = Some(text_at(*pair.add(1) as *const u8));
                }
                pair = pair.add(2);
            }
            Self { argv, exec_path }
        }
    }

    /// The path given to execve; may be relative, may be a symlink.
    pub(crate) fn exec_path(&self) -> Option<&'static [u8]> {
        self.exec_path
    }

    /// Number of words after the program's name.
    pub(crate) fn word_count(&self) -> usize {
        self.argv.len().saturating_sub(1)
    }

    /// Length of a word, up to its NUL: true only before it is overwritten.
    pub(crate) fn word_len(&self, index: usize) -> usize {
        // SAFETY: argument strings are NUL-terminated and live as long as the process.
        self.argv.get(index + 1).map_or(0, |word| unsafe { text_at(*word).len() })
    }

    /// The memory of a word, writable: other processes see it as `/proc/PID/cmdline`.
    ///
    /// # Safety
    ///
    /// `len` must not exceed the first [`Start::word_len`] of this word, and no two slices of it may live at once.
    pub(crate) unsafe fn word(&self, index: usize, len: usize) -> &'static mut [u8] {
        match self.argv.get(index + 1) {
            // SAFETY: argument strings lie in writable stack memory for the life of the process; the caller keeps
            // to the length and from aliasing.
            Some(word) => unsafe { slice::from_raw_parts_mut(*word, len) },
            None => &mut [],
        }
    }
}

/// # Safety
///
/// `start` must point to a NUL-terminated string that lives as long as the process.
unsafe fn text_at(start: *const u8) -> &'static [u8] {
    let mut len = 0;
    // SAFETY: the string ends with NUL, so every byte up to it may be read.
    unsafe {
        while *start.add(len) != 0 {
            len += 1;
        }
        slice::from_raw_parts(start, len)
    }
}
