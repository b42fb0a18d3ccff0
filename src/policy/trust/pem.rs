//! PEM blocks (RFC 7468): one block of one kind, strictly, or a chain of certificates.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Largest PEM file in bytes. An encrypted RSA-4096 key has about 5 KiB.
const MAX_BYTES: usize = 64 << 10;

/// The only block of `text`: its label and content. Text around the block is explanation and ignored.
pub(super) fn decode(text: &[u8]) -> Result<(String, Vec<u8>), String> {
    if text.len() > MAX_BYTES {
        return Err(format!("it has {} bytes, a key has at most {MAX_BYTES}", text.len()));
    }
    decode_any(text)
}

/// The same for what is no key; the caller knows how large it may be.
pub(super) fn decode_any(text: &[u8]) -> Result<(String, Vec<u8>), String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not a PEM file: not text".to_owned())?;
    let (_, rest) = text.split_once("-----BEGIN ").ok_or("it is not a PEM file: no BEGIN line")?;
    let (label, rest) = rest.split_once("-----").ok_or("its BEGIN line is cut off")?;
    let end = format!("-----END {label}-----");
    let (body, after) = rest.split_once(&end).ok_or_else(|| format!("there is no END line for {label:?}"))?;
    if after.contains("-----BEGIN ") {
        return Err("it holds more than one PEM block: put each key into a file of its own".to_owned());
    }
    let body: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let content = STANDARD.decode(body).map_err(|e| format!("its base64 is wrong: {e}"))?;
    Ok((label.to_owned(), content))
}

/// The certificates of `text`, of which there is one at least.
pub(super) fn certificates(text: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "is not a PEM file: not text".to_owned())?;
    let end = "-----END CERTIFICATE-----";
    let (blocks, after) = text.rsplit_once(end).ok_or("holds no certificate")?;
    if after.contains("-----BEGIN ") {
        return Err("ends in half a PEM block".to_owned());
    }
    let one = |block: &str| match decode(format!("{block}{end}").as_bytes()) {
        Ok((label, der)) if label == "CERTIFICATE" => Ok(der),
        Ok((label, _)) => Err(format!("holds a {label:?} block")),
        Err(why) => Err(format!("is not a list of certificates: {why}")),
    };
    blocks.split(end).map(one).collect()
}

/// One block, lines of 64 characters.
pub(super) fn encode(label: &str, content: &[u8]) -> String {
    let body = STANDARD.encode(content);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_round() {
        for len in [0, 1, 47, 48, 49, 1000] {
            let content = vec![7; len];
            let text = encode("X Y", &content);
            assert_eq!(decode(text.as_bytes()).unwrap(), ("X Y".to_owned(), content));
        }
    }

    #[test]
    fn refuses_half_blocks() {
        let two = encode("A", b"x").repeat(2);
        for bad in ["", "-----BEGIN ", "-----BEGIN A-----", "-----BEGIN A-----\n!\n-----END A-----", &two] {
            assert!(decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_of_certificates() {
        let (one, two) = (encode("CERTIFICATE", b"one"), encode("CERTIFICATE", b"two"));
        let list = format!("{one}\n{two}");
        assert_eq!(certificates(list.as_bytes()).unwrap(), [b"one", b"two"]);
        assert_eq!(certificates(one.trim_end().as_bytes()).unwrap(), [b"one"]);
        let (key, half) = (encode("PUBLIC KEY", b"x"), &two[..40]);
        for bad in ["", "x", &format!("{one}{key}"), &format!("{key}{one}"), &format!("{one}{half}"), half] {
            assert!(certificates(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
