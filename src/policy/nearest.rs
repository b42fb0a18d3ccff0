//! "Did you mean": the known name that a mistyped one most resembles.

/// Names longer than this are not typing mistakes; it also bounds the quadratic work.
const LONGEST: usize = 64;

/// The candidate at most two edits away from `name` (one for names of up to four letters), the nearest first.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > LONGEST {
        return None;
    }
    let most = if name.len() <= 4 { 1 } else { 2 };
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST)
        .map(|candidate| (edits(name.as_bytes(), candidate.as_bytes()), candidate))
        .filter(|(distance, _)| (1..=most).contains(distance))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Damerau-Levenshtein distance with adjacent transpositions (`netwrok` is one edit from `network`).
fn edits(a: &[u8], b: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let swapped = i > 0 && j > 0 && a[i - 1] == *y && b[j - 1] == *x;
            let mut best = (above[j] + usize::from(x != y)).min(above[j + 1] + 1).min(row[j] + 1);
            if swapped {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_typing_mistakes_only() {
        let known = ["command", "network", "env", "id"];
        assert_eq!(nearest("netwrok", known), Some("network"));
        assert_eq!(nearest("comand", known), Some("command"));
        assert_eq!(nearest("en", known), Some("env"));
        assert_eq!(nearest("nope", ["code"]), None);
        assert_eq!(nearest("profile", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest(&"x".repeat(1000), known), None);
    }
}
