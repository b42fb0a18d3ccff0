//! BER with indefinite lengths, as some timestamping authorities write their tokens, turned into DER (X.690, sections 8.1.3.6
//! and 8.7.3; notation takes such tokens, too).
//!
//! Lengths become definite and strings in pieces whole; the rest stays as it is. What is signed inside must have been DER
//! from the start, so nothing that a signature covers changes.

use super::asn1::{Element, walk};

/// Deepest nesting; tokens have some ten levels.
const MAX_DEPTH: usize = 32;

const OCTET_STRING: u8 = 0x04;
const CONSTRUCTED: u8 = 0x20;

/// Whether the value is of indefinite length.
pub(super) fn is_indefinite(bytes: &[u8]) -> bool {
    matches!(bytes, [_, 0x80, ..])
}

/// The only value of `bytes` in DER.
pub(super) fn to_der(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut der = Vec::with_capacity(bytes.len());
    match convert(bytes, 0, &mut der)? {
        [] => Ok(der),
        _ => Err("something stands behind its end".to_owned()),
    }
}

/// Appends the first value of `bytes` to `der`; returns what stands behind it.
fn convert<'a>(bytes: &'a [u8], depth: usize, der: &mut Vec<u8>) -> Result<&'a [u8], String> {
    if depth > MAX_DEPTH {
        return Err(format!("it is nested more than {MAX_DEPTH} deep"));
    }
    let (&tag, rest) = bytes.split_first().ok_or("it is cut off")?;
    if tag & 0x1f == 0x1f {
        return Err("it has a tag of several bytes".to_owned());
    }
    let (length, mut rest) = length(rest)?;
    let mut content = Vec::new();
    match length {
        Some(length) => {
            let (mut inner, behind) = rest.split_at_checked(length).ok_or("it is cut off")?;
            if tag & CONSTRUCTED == 0 {
                content.extend_from_slice(inner);
                inner = &[];
            }
            while !inner.is_empty() {
                inner = convert(inner, depth + 1, &mut content)?;
            }
            rest = behind;
        }
        None if tag & CONSTRUCTED != 0 => loop {
            if let [0, 0, behind @ ..] = rest {
                rest = behind;
                break;
            }
            rest = convert(rest, depth + 1, &mut content)?;
        },
        None => return Err("a value in one piece has no length".to_owned()),
    }
    let tag = if tag == OCTET_STRING | CONSTRUCTED {
        content = joined(&content)?;
        OCTET_STRING
    } else {
        tag
    };
    der.push(tag);
    push_length(content.len(), der);
    der.append(&mut content);
    Ok(rest)
}

/// The length that `bytes` begin with, `None` if it is indefinite, and what stands behind it.
fn length(bytes: &[u8]) -> Result<(Option<usize>, &[u8]), String> {
    let (&first, rest) = bytes.split_first().ok_or("it is cut off")?;
    let count = usize::from(first & 0x7f);
    match first {
        0x80 => Ok((None, rest)),
        _ if first & 0x80 == 0 => Ok((Some(count), rest)),
        _ if count > 4 => Err("it has a length of more than four bytes".to_owned()),
        _ => {
            let (digits, rest) = rest.split_at_checked(count).ok_or("it is cut off")?;
            Ok((Some(digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit))), rest))
        }
    }
}

fn push_length(length: usize, der: &mut Vec<u8>) {
    match u8::try_from(length) {
        Ok(length) if length < 0x80 => der.push(length),
        _ => {
            let bytes = length.to_be_bytes();
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            let digits = bytes.get(zeros..).unwrap_or_default();
            der.push(0x80 | u8::try_from(digits.len()).unwrap_or_default());
            der.extend_from_slice(digits);
        }
    }
}

/// The pieces of a string, one behind the other.
fn joined(pieces: &[u8]) -> Result<Vec<u8>, String> {
    let mut whole = Vec::with_capacity(pieces.len());
    walk(pieces, |piece: Element<'_>| {
        whole.extend_from_slice(piece.octets()?);
        Ok(())
    })?;
    Ok(whole)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The same value as loose as BER lets it be: no constructed value has a length, strings come in pieces.
    pub(in super::super) fn to_ber(der: &[u8]) -> Vec<u8> {
        let mut ber = Vec::new();
        walk(der, |element| {
            let tag = element.bytes[0];
            if tag == OCTET_STRING {
                ber.extend([OCTET_STRING | CONSTRUCTED, 0x80]);
                for piece in element.content().chunks(100) {
                    ber.push(OCTET_STRING);
                    push_length(piece.len(), &mut ber);
                    ber.extend(piece);
                }
                ber.extend([0, 0]);
            } else if tag & CONSTRUCTED != 0 {
                ber.extend([tag, 0x80]);
                ber.extend(to_ber(element.content()));
                ber.extend([0, 0]);
            } else {
                ber.extend(element.bytes);
            }
            Ok(())
        })
        .unwrap();
        ber
    }

    #[test]
    fn what_ber_loosens_is_made_strict_again() {
        for (ber, der) in [
            (&[0x30, 0x80, 0, 0][..], &[0x30, 0][..]),
            (&[0x30, 0x80, 0x02, 1, 5, 0x30, 0x81, 0, 0, 0], &[0x30, 5, 0x02, 1, 5, 0x30, 0]),
            (&[0x24, 0x80, 4, 1, 1, 0x24, 3, 4, 1, 2, 0, 0], &[4, 2, 1, 2]),
            (&[0x04, 0x82, 0, 1, 9], &[4, 1, 9]),
        ] {
            assert_eq!(to_der(ber).unwrap(), der);
            assert_eq!(to_der(der).unwrap(), der);
        }
        let long = [&[0x30, 0x82, 1, 0][..], &[5, 0].repeat(128)].concat();
        assert_eq!(to_der(&to_ber(&long)).unwrap(), long);
        assert!(is_indefinite(&to_ber(&long)) && !is_indefinite(&long));
        for bad in [
            &[][..],
            &[0x30],
            &[0x30, 0x80],
            &[0x30, 0x80, 0],
            &[0x04, 0x80, 0, 0],
            &[0x30, 0x80, 0, 0, 0],
            &[0x3f, 0x80, 0, 0],
            &[0x30, 0x85, 1, 1, 1, 1, 1],
            &[0x30, 3, 5],
            &[0x24, 0x80, 5, 0, 0, 0],
            &[0x30, 0x80].repeat(100),
        ] {
            assert!(to_der(bad).is_err(), "{bad:?}");
        }
    }
}
