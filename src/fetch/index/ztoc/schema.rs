//! The FlatBuffers tables of a zTOC (soci-snapshotter `ztoc/fbs/ztoc.fbs` and `ztoc/compression/fbs/zinfo.fbs`).
//!
//! Written by hand because a generated module would be ten times as long, and take strings for UTF-8: names in a tar are
//! bytes. A field that is absent is its default in the schema; nothing is required by it.
#![allow(unsafe_code, reason = "FlatBuffers' accessors are unsafe; what they need is verified in this file")]

use flatbuffers::{
    Follow, ForwardsUOffset, InvalidFlatbuffer, Table, VOffsetT, Vector, Verifiable, Verifier,
    VerifierOptions,
};

/// Bytes or a string.
type Text<'a> = ForwardsUOffset<Vector<'a, u8>>;
type Tables<'a, T> = ForwardsUOffset<Vector<'a, ForwardsUOffset<T>>>;

/// Where the vtable says where field number `field` is.
pub(super) const fn slot(field: VOffsetT) -> VOffsetT {
    4 + 2 * field
}

macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty = $number:expr;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $name<'a>(Table<'a>);

        impl<'a> Follow<'a> for $name<'a> {
            type Inner = Self;

            unsafe fn follow(buf: &'a [u8], loc: usize) -> Self {
                // SAFETY: the caller promises that there is such a table at `loc`.
                Self(unsafe { Table::new(buf, loc) })
            }
        }

        impl<'a> Verifiable for $name<'a> {
            fn run_verifier(verifier: &mut Verifier<'_, '_>, at: usize) -> Result<(), InvalidFlatbuffer> {
                let table = verifier.visit_table(at)?;
                $(let table = table.visit_field::<$kind>(stringify!($field), slot($number), false)?;)*
                table.finish();
                Ok(())
            }
        }

        impl<'a> $name<'a> {
            $(pub(super) fn $field(&self) -> Option<<$kind as Follow<'a>>::Inner> {
                // SAFETY: tables come out of `root` only, which has verified that this field, if it is there, is of this
                // kind.
                unsafe { self.0.get::<$kind>(slot($number), None) }
            })*
        }
    };
}

table! {
    /// The whole.
    Ztoc {
        version: Text<'a> = 0;
        compressed_archive_size: i64 = 2;
        uncompressed_archive_size: i64 = 3;
        toc: ForwardsUOffset<Toc<'a>> = 4;
        compression_info: ForwardsUOffset<CompressionInfo<'a>> = 5;
    }
}

table! {
    /// The entries.
    Toc { metadata: Tables<'a, FileMetadata<'a>> = 0; }
}

table! {
    /// One entry.
    FileMetadata {
        name: Text<'a> = 0;
        kind: Text<'a> = 1;
        uncompressed_offset: i64 = 2;
        uncompressed_size: i64 = 3;
        linkname: Text<'a> = 4;
        mode: i64 = 5;
        uid: u32 = 6;
        gid: u32 = 7;
        mod_time: Text<'a> = 10;
        devmajor: i64 = 11;
        devminor: i64 = 12;
        xattrs: Tables<'a, Xattr<'a>> = 13;
    }
}

table! {
    /// A PAX record, whatever its name says.
    Xattr { key: Text<'a> = 0; value: Text<'a> = 1; }
}

table! {
    /// Spans and how to decode them.
    CompressionInfo {
        compression_algorithm: i8 = 0;
        max_span_id: i32 = 1;
        span_digests: Tables<'a, Vector<'a, u8>> = 2;
        checkpoints: Text<'a> = 3;
    }
}

table! {
    /// The checkpoints of a plain tar.
    TarZinfo { span_size: i64 = 1; size: i64 = 2; }
}

/// The table at the root of `bytes`, after all of it was verified.
pub(super) fn root<'a, T>(bytes: &'a [u8], tables: usize) -> Result<T::Inner, InvalidFlatbuffer>
where
    T: Follow<'a> + Verifiable + 'a,
{
    // Three levels deep. A table may stand in several places, so what is read can be more than what is there.
    let options = VerifierOptions {
        max_depth: 8,
        max_tables: tables,
        max_apparent_size: bytes.len().saturating_mul(4),
        ..VerifierOptions::default()
    };
    flatbuffers::root_with_opts::<T>(&options, bytes)
}
