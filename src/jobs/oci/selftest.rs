//! The smallest program there is, to prove that a runtime can run one: it exits with a code nobody else gives.
//!
//! The file is put together here, header by header (elf(5)), because an image need not have a program we know of.

/// The exit code that proves it ran.
pub(super) const CODE: i32 = 42;

/// `exit_group(42)` as machine code and the machine's number in ELF.
fn code() -> Option<(&'static [u8], u16)> {
    match std::env::consts::ARCH {
        // mov edi, 42; mov eax, 231; syscall
        "x86_64" => Some((&[0xbf, 42, 0, 0, 0, 0xb8, 231, 0, 0, 0, 0x0f, 0x05], 62)),
        // mov x0, #42; mov x8, #94; svc #0
        "aarch64" => Some((&[0x40, 0x05, 0x80, 0xd2, 0xc8, 0x0b, 0x80, 0xd2, 0x01, 0, 0, 0xd4], 183)),
        _ => None,
    }
}

/// An executable for this machine; `None` on architectures we have no code for.
pub(super) fn program() -> Option<Vec<u8>> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let (code, machine) = code()?;
    let length = HEADERS + code.len() as u64;
    let mut elf = Vec::new();
    elf.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // 64 bit, little endian
    elf.extend_from_slice(&2u16.to_le_bytes()); // an executable
    elf.extend_from_slice(&machine.to_le_bytes());
    elf.extend_from_slice(&1u32.to_le_bytes());
    elf.extend_from_slice(&(BASE + HEADERS).to_le_bytes()); // entry
    elf.extend_from_slice(&64u64.to_le_bytes()); // program headers follow at once
    elf.extend_from_slice(&0u64.to_le_bytes()); // no sections
    elf.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        elf.extend_from_slice(&half.to_le_bytes()); // sizes and counts of headers
    }
    elf.extend_from_slice(&1u32.to_le_bytes()); // one segment, loaded,
    elf.extend_from_slice(&5u32.to_le_bytes()); // readable and executable
    for word in [0, BASE, BASE, length, length, 0x1000] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf.extend_from_slice(code);
    Some(elf)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_runs_here() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("probe");
        std::fs::write(&path, program().unwrap()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(std::process::Command::new(&path).status().unwrap().code(), Some(CODE));
    }
}
