//! The one place that speaks zlib's C interface.
//!
//! Checkpoints need what no safe crate offers: stopping at a deflate block's boundary, the bits left over
//! there, and the 32 KiB window before it (`Z_BLOCK`, `data_type`, `inflateGetDictionary`), and the way back
//! (`inflatePrime`, `inflateSetDictionary`). This wraps exactly that much of `libz-rs-sys`, which is Rust below.
#![allow(unsafe_code, reason = "zlib's interface is C's; every call is in this file")]

use libz_rs_sys as zlib;

/// Deflate looks back at most this far (RFC 1951).
pub(super) const WINDOW: usize = 32 << 10;

/// What is around the deflate blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrap {
    /// A gzip header before, CRC and length behind; both are checked.
    Gzip,
    /// Nothing.
    Raw,
}

impl Wrap {
    /// zlib's `windowBits`: 15 for the largest window, +16 for gzip, negative for raw.
    const fn window_bits(self) -> i32 {
        match self {
            Self::Gzip => 31,
            Self::Raw => -15,
        }
    }
}

/// What one call did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    /// Bytes of input that were used up.
    pub consumed: usize,
    /// Bytes of output that were written.
    pub produced: usize,
    /// The stream (gzip member) is complete.
    pub end: bool,
    /// Decoding stands between two blocks, with more to come; so many bits of the last consumed byte belong to
    /// the next block.
    pub boundary: Option<u8>,
}

/// The input is not deflate data, or not what a checkpoint promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

/// An inflater.
pub(super) struct Inflate {
    /// Boxed: zlib keeps a pointer back to it. Its `next_in` and `next_out` are null between calls.
    stream: Box<zlib::z_stream>,
}

// SAFETY: the stream owns its state exclusively (allocated by `inflateInit2_`, freed by `inflateEnd`), the state
// is not tied to a thread, and no pointer to foreign memory is kept between calls.
unsafe impl Send for Inflate {}

impl std::fmt::Debug for Inflate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inflate")
    }
}

impl Inflate {
    /// A fresh inflater; fails only without memory.
    pub(super) fn new(wrap: Wrap) -> Result<Self, Broken> {
        let mut stream = Box::new(zlib::z_stream::default());
        let size = i32::try_from(size_of::<zlib::z_stream>()).map_err(|_| Broken)?;
        // SAFETY: the stream is valid and carries zlib's default allocator; the version string is the library's.
        let code =
            unsafe { zlib::inflateInit2_(&raw mut *stream, wrap.window_bits(), zlib::zlibVersion(), size) };
        if code == zlib::Z_OK { Ok(Self { stream }) } else { Err(Broken) }
    }

    /// Starts over with a new stream.
    pub(super) fn reset(&mut self, wrap: Wrap) -> Result<(), Broken> {
        // SAFETY: the stream was initialized by `new`.
        let code = unsafe { zlib::inflateReset2(&raw mut *self.stream, wrap.window_bits()) };
        if code == zlib::Z_OK { Ok(()) } else { Err(Broken) }
    }

    /// Begins a raw stream in the middle: `bits` (0 to 7) bits of the byte before, and the output before.
    pub(super) fn resume(&mut self, bits: u8, value: u8, window: &[u8]) -> Result<(), Broken> {
        let len = u32::try_from(window.len()).map_err(|_| Broken)?;
        if bits > 7 || window.len() > WINDOW {
            return Err(Broken);
        }
        // SAFETY: the stream was initialized by `new`; the window is a live slice of `len` bytes, which zlib copies.
        let codes = unsafe {
            let primed = match bits {
                0 => zlib::Z_OK,
                _ => zlib::inflatePrime(&raw mut *self.stream, i32::from(bits), i32::from(value)),
            };
            (primed, zlib::inflateSetDictionary(&raw mut *self.stream, window.as_ptr(), len))
        };
        if codes == (zlib::Z_OK, zlib::Z_OK) { Ok(()) } else { Err(Broken) }
    }

    /// Decodes as much as input and output allow, or, with `to_boundary`, at most to the end of a block.
    /// A step that neither consumes nor produces means that input (or output) is wanted.
    pub(super) fn step(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        to_boundary: bool,
    ) -> Result<Step, Broken> {
        let (before_in, before_out) = (clamp(input.len()), clamp(output.len()));
        self.stream.next_in = input.as_ptr();
        self.stream.avail_in = before_in;
        self.stream.next_out = output.as_mut_ptr();
        self.stream.avail_out = before_out;
        let flush = if to_boundary { zlib::Z_BLOCK } else { zlib::Z_NO_FLUSH };
        // SAFETY: the stream was initialized by `new`, and the four fields describe live slices, the output one
        // borrowed mutably for the whole call.
        let code = unsafe { zlib::inflate(&raw mut *self.stream, flush) };
        self.stream.next_in = std::ptr::null();
        self.stream.next_out = std::ptr::null_mut();
        let consumed = before_in.saturating_sub(std::mem::take(&mut self.stream.avail_in)) as usize;
        let produced = before_out.saturating_sub(std::mem::take(&mut self.stream.avail_out)) as usize;
        // zlib.h: 128 at a boundary, 64 while in the last block, and the number of unused bits.
        let state = self.stream.data_type;
        let boundary = (state & 128 != 0 && state & 64 == 0).then_some((state & 7) as u8);
        match code {
            zlib::Z_OK | zlib::Z_BUF_ERROR => Ok(Step { consumed, produced, end: false, boundary }),
            zlib::Z_STREAM_END => Ok(Step { consumed, produced, end: true, boundary: None }),
            _ => Err(Broken),
        }
    }

    /// The output before the present position, at most [`WINDOW`] bytes.
    pub(super) fn window(&self) -> Result<Vec<u8>, Broken> {
        let (mut window, mut len) = (vec![0; WINDOW], 0);
        // SAFETY: the stream was initialized by `new`; the buffer has the 32 KiB that are always enough.
        let code =
            unsafe { zlib::inflateGetDictionary(&raw const *self.stream, window.as_mut_ptr(), &raw mut len) };
        window.truncate(len as usize);
        if code == zlib::Z_OK { Ok(window) } else { Err(Broken) }
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the stream was initialized by `new` and is not used afterwards.
        unsafe { zlib::inflateEnd(&raw mut *self.stream) };
    }
}

/// zlib counts in 32 bits; longer slices are worked off in several steps.
fn clamp(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
