//! Tables for people: columns as wide as their widest cell, the last one free.

/// Widest column but the last; longer cells push the rest of their line.
const WIDEST: usize = 48;

/// Lays out rows under a header. Control characters of cells are dropped: they are strangers' text.
pub(crate) fn layout<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let header = header.map(str::to_owned);
    let clean = |cell: &String| cell.chars().filter(|c| !c.is_control()).collect::<String>();
    let rows: Vec<[String; N]> = std::iter::once(&header)
        .chain(rows)
        .map(|row| std::array::from_fn(|column| clean(&row[column])))
        .collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).min(WIDEST)
    });
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::layout;

    #[test]
    fn columns_line_up() {
        let rows = [
            ["a".to_owned(), "long cell".to_owned(), "x\u{1b}[2J".to_owned()],
            ["bbb".into(), "".into(), "".into()],
        ];
        assert_eq!(layout(["ID", "WHAT", "C"], &rows), "ID   WHAT       C\na    long cell  x[2J\nbbb\n");
    }
}
