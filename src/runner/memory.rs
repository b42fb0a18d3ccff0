//! Memory: the five functions that compiled code calls without being asked to, and buffers from mmap.

use crate::sys::{self, Errno};

/// Pages from the kernel, zeroed, given back when dropped.
pub(crate) struct Buffer {
    bytes: &'static mut [u8],
    private: bool,
}

impl Buffer {
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        sys::map(len.max(1)).map(|bytes| Self { bytes, private: false })
    }

    /// For arguments: overwritten before the pages go back.
    pub(crate) fn private(len: usize) -> Result<Self, Errno> {
        sys::map(len.max(1)).map(|bytes| Self { bytes, private: true })
    }
}

impl core::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl core::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.private {
            self.bytes.fill(0);
        }
        sys::unmap(self.bytes);
    }
}

/// Copies forwards; `rep movsb` on x86_64, a byte loop elsewhere: what is copied here is small.
///
/// # Safety
///
/// As C's memcpy: both regions valid for `len` bytes and apart.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear by the ABI.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    for index in 0..len {
        // SAFETY: index is below len, within both regions.
        unsafe { *to.add(index) = *from.add(index) };
    }
    to
}

/// # Safety
///
/// As C's memmove: both regions valid for `len` bytes; they may overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: `to` is before `from` or beyond its end, where a forward copy reads each byte before it writes it.
        return unsafe { memcpy(to, from, len) };
    }
    for index in (0..len).rev() {
        // SAFETY: index is below len; backwards, because `to` lies inside of the source.
        unsafe { *to.add(index) = *from.add(index) };
    }
    to
}

/// # Safety
///
/// As C's memset: the region valid for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear by the ABI.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") value as u8,
            options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    for index in 0..len {
        // SAFETY: index is below len.
        unsafe { *to.add(index) = value as u8 };
    }
    to
}

/// # Safety
///
/// As C's memcmp: both regions valid for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for index in 0..len {
        // SAFETY: index is below len.
        let (a, b) = unsafe { (*a.add(index), *b.add(index)) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// # Safety
///
/// As [`memcmp`].
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, len) }
}
