//! Tables for people: aligned columns, nothing that a terminal would obey.

use std::fmt::Write;

/// Rows under a header, columns as wide as their widest cell.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header.get(column).map_or(0, |title| title.len())]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    line(&mut text, &widths, header.iter().copied());
    for row in &rows {
        line(&mut text, &widths, row.iter().map(String::as_str));
    }
    text
}

fn line<'a>(text: &mut String, widths: &[usize], cells: impl Iterator<Item = &'a str>) {
    let start = text.len();
    for (cell, width) in cells.zip(widths) {
        // Writing to a string does not fail.
        let _ = write!(text, "{cell:<width$}   ");
    }
    let end = text.trim_end().len().max(start);
    text.truncate(end);
    text.push('\n');
}

/// A text without control characters: names and messages may come from others.
pub(crate) fn plain(text: &str) -> String {
    let visible = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect::<String>();
    if visible.is_empty() { "-".to_owned() } else { visible }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_controls_are_shown_as_such() {
        let rows = vec![vec!["pay".to_owned(), "1".to_owned()], vec!["a\x1b[2Jb".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME     N\npay      1\na\u{fffd}[2Jb   -\n");
    }
}
