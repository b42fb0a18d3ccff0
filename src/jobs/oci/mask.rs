//! Secret values never reach a log: a stream in, the same stream with each secret replaced by `[secret]` out.

/// What stands in place of a secret.
const MASK: &[u8] = b"[secret]";
/// Lines of a secret of several lines are masked one by one too (a key printed with indentation), if they are long
/// enough not to blank out ordinary words.
const LINE_MIN: usize = 8;

/// Replaces secrets in a stream that arrives in pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Masker {
    /// Longest first, so that of two secrets that begin alike the longer one is seen.
    secrets: Vec<Vec<u8>>,
    /// Which bytes a secret begins with.
    begins: Vec<bool>,
    /// The end of what was pushed, as far as it could be the beginning of a secret.
    held: Vec<u8>,
}

impl Masker {
    /// A masker for these values; empty ones are ignored.
    pub(super) fn new<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let mut secrets: Vec<Vec<u8>> = Vec::new();
        for value in values {
            let whole = value.trim_end_matches(['\n', '\r']);
            secrets.push(whole.as_bytes().to_vec());
            if whole.contains('\n') {
                let lines = whole.lines().map(str::trim).filter(|line| line.len() >= LINE_MIN);
                secrets.extend(lines.map(|line| line.as_bytes().to_vec()));
            }
        }
        secrets.retain(|s| !s.is_empty());
        secrets.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        secrets.dedup();
        let mut begins = vec![false; 256];
        for secret in &secrets {
            if let Some(slot) = secret.first().and_then(|&b| begins.get_mut(usize::from(b))) {
                *slot = true;
            }
        }
        Self { secrets, begins, held: Vec::new() }
    }

    /// Takes a piece and gives what is certain by now.
    pub(super) fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        if self.secrets.is_empty() {
            out.extend_from_slice(piece);
            return;
        }
        let mut input = std::mem::take(&mut self.held);
        input.extend_from_slice(piece);
        let rest = self.scan(&input, out, false);
        self.held = input.split_off(rest);
    }

    /// Gives what was held back, at the end of the stream.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        let input = std::mem::take(&mut self.held);
        self.scan(&input, out, true);
    }

    /// Writes everything decided of `input`; returns where the undecided rest begins.
    fn scan(&self, input: &[u8], out: &mut Vec<u8>, at_end: bool) -> usize {
        let mut at = 0;
        while let Some(rest) = input.get(at..).filter(|rest| !rest.is_empty()) {
            let plain = rest.iter().position(|&b| self.begins.get(usize::from(b)) == Some(&true));
            let plain = plain.unwrap_or(rest.len());
            out.extend_from_slice(rest.get(..plain).unwrap_or_default());
            at += plain;
            let Some(rest) = input.get(at..).filter(|rest| !rest.is_empty()) else { break };
            // A longer secret that may still come goes before a shorter one that is here.
            match self.secrets.iter().find(|s| rest.starts_with(s) || (!at_end && s.starts_with(rest))) {
                Some(secret) if rest.starts_with(secret) => {
                    out.extend_from_slice(MASK);
                    at += secret.len();
                }
                Some(_) => return at,
                None => {
                    out.extend_from_slice(rest.get(..1).unwrap_or_default());
                    at += 1;
                }
            }
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masked(secrets: &[&str], pieces: &[&[u8]]) -> String {
        let mut masker = Masker::new(secrets.iter().copied());
        let mut out = Vec::new();
        for piece in pieces {
            masker.push(piece, &mut out);
        }
        masker.finish(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn split_overlapping_and_several_lines() {
        assert_eq!(masked(&["hunter2"], &[b"pw=hun", b"ter", b"2!"]), "pw=[secret]!");
        assert_eq!(masked(&["hunter2"], &[b"hunhunter2hunter"]), "hun[secret]hunter");
        assert_eq!(masked(&["abc", "abcdef"], &[b"abc", b"def abcx"]), "[secret] [secret]x");
        assert_eq!(masked(&["aab"], &[b"aaab"]), "a[secret]");
        assert_eq!(
            masked(&["line-one-long\nshort\nline-two-long\n"], &[b"  line-two-long short"]),
            "  [secret] short"
        );
        assert_eq!(masked(&["", "\n"], &[b"anything"]), "anything");
    }

    proptest! {
        #[test]
        fn any_split_gives_what_the_whole_gives(text in "[abc]{0,40}", cuts in proptest::collection::vec(0usize..40, 0..6)) {
            let secrets = ["abca", "bb", "abcabc"];
            let whole = masked(&secrets, &[text.as_bytes()]);
            let mut pieces = Vec::new();
            let mut from = 0;
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&c| c <= text.len()).collect();
            cuts.sort_unstable();
            for cut in cuts {
                pieces.push(&text.as_bytes()[from..cut]);
                from = cut;
            }
            pieces.push(&text.as_bytes()[from..]);
            prop_assert_eq!(masked(&secrets, &pieces), whole);
        }
    }
}
