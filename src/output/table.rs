//! Tables, which are printed page by page.

use super::{escape_foreign, is_terminal, print_line};

/// A table with a heading. A column keeps the width of its widest cell so far.
#[derive(Debug)]
pub(crate) struct Table {
    heading: Vec<String>,
    widths: Vec<usize>,
    is_heading_printed: bool,
    /// The most characters of a line; none where stdout is no terminal.
    line_max: Option<usize>,
}

impl Table {
    /// Makes an empty table. Its lines fit the terminal that stdout is, if it is one.
    pub(crate) fn new(heading: &[&str]) -> Self {
        Self::with_heading(heading.iter().map(|cell| (*cell).to_owned()).collect())
    }

    /// Makes an empty table with a heading that others have chosen.
    pub(crate) fn with_heading(heading: Vec<String>) -> Self {
        let size = is_terminal().then(|| rustix::termios::tcgetwinsize(rustix::stdio::stdout()));
        let columns = size.and_then(Result::ok).map(|size| usize::from(size.ws_col));
        Self {
            widths: vec![0; heading.len()],
            heading,
            is_heading_printed: false,
            line_max: columns.filter(|columns| *columns > 0),
        }
    }

    /// Prints rows, and the heading before the first of them.
    pub(crate) fn print_rows(&mut self, rows: Vec<Vec<String>>) {
        if rows.is_empty() {
            return;
        }
        for text in self.lines(rows) {
            print_line(text);
        }
    }

    /// Prints the heading, unless it is printed already.
    pub(crate) fn print_heading(&mut self) {
        for text in self.lines(vec![]) {
            print_line(text);
        }
    }

    fn lines(&mut self, rows: Vec<Vec<String>>) -> Vec<String> {
        let heading = (!self.is_heading_printed).then(|| self.heading.clone());
        self.is_heading_printed = true;
        let escaped = |row: Vec<String>| row.iter().map(|cell| escape_foreign(cell)).collect();
        let rows: Vec<Vec<String>> = heading.into_iter().chain(rows).map(escaped).collect();
        for (column, width) in self.widths.iter_mut().enumerate() {
            let cells = rows.iter().map(|row| row[column].chars().count());
            *width = cells.max().unwrap_or_default().max(*width);
        }
        rows.iter().map(|row| self.line(row)).collect()
    }

    fn line(&self, row: &[String]) -> String {
        let cells: Vec<String> = row
            .iter()
            .zip(&self.widths)
            .map(|(cell, width)| format!("{cell:<width$}", width = *width))
            .collect();
        let line = cells.join("  ");
        let line = line.trim_end();
        match self.line_max {
            Some(most) if line.chars().count() > most => {
                let mut cut: String = line.chars().take(most - 1).collect();
                cut.push('…');
                cut
            }
            _ => line.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: [&str; 2]) -> Vec<String> {
        cells.map(str::to_owned).to_vec()
    }

    #[test]
    fn columns_are_aligned_over_all_pages() {
        let mut table = Table { line_max: None, ..Table::new(&["ID", "WHAT"]) };
        let first = table.lines(vec![row(["a", "long cell"]), row(["bcd", "x"])]);
        assert_eq!(first, ["ID   WHAT", "a    long cell", "bcd  x"]);
        assert_eq!(table.lines(vec![row(["e", "y"]), row(["fghi", ""])]), ["e     y", "fghi"]);
    }

    #[test]
    fn a_line_that_is_too_long_for_the_terminal_is_cut_visibly() {
        let mut table = Table { line_max: Some(8), ..Table::new(&["ID", "WHAT"]) };
        assert_eq!(table.lines(vec![row(["äöü", "12345"])]), ["ID   WH…", "äöü  12…"]);
    }
}
