//! The files of the items, and their lines, read with a bounded memory.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::error::IndexError;

/// The bytes that are read of a file at a time. 256 KiB: smaller makes more calls, larger gains
/// nothing.
const READ_BYTES: usize = 256 << 10;

/// Whether a file has one item, or one a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ItemForm {
    Whole,
    Lines,
}

/// Returns the files of items below a folder, at any depth, in the order of their paths.
pub(crate) fn find_item_files(folder: &Path) -> Result<Vec<(PathBuf, ItemForm)>, IndexError> {
    let mut found = vec![];
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let listed = std::fs::read_dir(&folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        for entry in listed.map_err(IndexError::file("listed", &folder))? {
            let kind = entry.file_type().map_err(IndexError::file("read", entry.path()))?;
            let form = match entry.file_name().as_encoded_bytes() {
                b"item.json" => Some(ItemForm::Whole),
                b"items.ndjson" => Some(ItemForm::Lines),
                _ => None,
            };
            match form {
                _ if kind.is_dir() => open.push(entry.path()),
                Some(form) => found.push((entry.path(), form)),
                None => {}
            }
        }
    }
    if found.is_empty() {
        return Err(IndexError::NoItems(folder.to_owned()));
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

/// Reads the items of one file.
pub(crate) struct ItemReader<R> {
    reader: R,
    form: ItemForm,
    bytes_max: usize,
    /// The number of the line that was read last, counted from 1.
    line: u64,
    buffer: Vec<u8>,
}

/// The text of one item, as a file has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ItemText<'a> {
    /// One line of text; it need not be JSON.
    Text(&'a str),
    /// The bytes are no UTF-8.
    NotText(&'a [u8]),
    /// It has more bytes than an item may have, so it was skipped.
    TooLong(u64),
}

impl ItemReader<BufReader<File>> {
    pub(crate) fn open(path: &Path, form: ItemForm, bytes_max: usize) -> Result<Self, IndexError> {
        let file = File::open(path).map_err(IndexError::file("read", path))?;
        Ok(Self::new(BufReader::with_capacity(READ_BYTES, file), form, bytes_max))
    }
}

impl<R: BufRead> ItemReader<R> {
    fn new(reader: R, form: ItemForm, bytes_max: usize) -> Self {
        Self { reader, form, bytes_max, line: 0, buffer: vec![] }
    }

    /// Returns the next item and the number of its line, or `None` at the end. Empty lines are
    /// skipped.
    pub(crate) fn next(&mut self) -> std::io::Result<Option<(u64, ItemText<'_>)>> {
        loop {
            self.line += 1;
            let Some(skipped) = self.read_one()? else { return Ok(None) };
            if skipped > 0 {
                let bytes = self.buffer.len() as u64 + skipped;
                return Ok(Some((self.line, ItemText::TooLong(bytes))));
            }
            if self.form == ItemForm::Whole {
                // In JSON these stand between values only, and a text has none of them. The
                // document has to be one line of a bulk request.
                for byte in &mut self.buffer {
                    if matches!(byte, b'\n' | b'\r') {
                        *byte = b' ';
                    }
                }
            }
            if !self.buffer.trim_ascii().is_empty() {
                break;
            }
        }
        let mut bytes = self.buffer.trim_ascii();
        if self.line == 1 {
            bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes).trim_ascii();
        }
        let text = std::str::from_utf8(bytes);
        Ok(Some((self.line, text.map_or(ItemText::NotText(bytes), ItemText::Text))))
    }

    /// Reads one item into the buffer, without the end of its line, and returns how many bytes more
    /// it has than an item may have. Returns `None` at the end.
    fn read_one(&mut self) -> std::io::Result<Option<u64>> {
        self.buffer.clear();
        let mut skipped = 0_u64;
        let mut is_empty = true;
        loop {
            let piece = self.reader.fill_buf()?;
            if piece.is_empty() {
                return Ok((!is_empty).then_some(skipped));
            }
            is_empty = false;
            let end = match self.form {
                ItemForm::Whole => None,
                ItemForm::Lines => piece.iter().position(|byte| *byte == b'\n'),
            };
            let item = &piece[..end.unwrap_or(piece.len())];
            let (kept, left) = item.split_at(item.len().min(self.bytes_max - self.buffer.len()));
            self.buffer.extend_from_slice(kept);
            skipped += left.len() as u64;
            let used = item.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(Some(skipped));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads all items of these bytes in pieces of each size.
    fn items(bytes: &[u8], form: ItemForm, bytes_max: usize) -> Vec<(u64, String)> {
        let read = |piece: usize| {
            let reader = BufReader::with_capacity(piece, bytes);
            let mut reader = ItemReader::new(reader, form, bytes_max);
            let mut all = vec![];
            while let Some((line, text)) = reader.next().unwrap() {
                all.push((line, format!("{text:?}")));
            }
            all
        };
        let all = read(1);
        for piece in 2..12 {
            assert_eq!(read(piece), all, "in pieces of {piece}");
        }
        all
    }

    #[test]
    fn lines_are_items_and_empty_ones_are_skipped() {
        assert_eq!(
            items(b"\xEF\xBB\xBF{1}\r\n\n \t\n{2}\n{3}", ItemForm::Lines, 8),
            [(1, "Text(\"{1}\")".into()), (4, "Text(\"{2}\")".into()), (5, "Text(\"{3}\")".into())]
        );
        assert_eq!(items(b"", ItemForm::Lines, 8), []);
        assert_eq!(items(b"\n\n", ItemForm::Lines, 8), []);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_counted() {
        assert_eq!(
            items(b"{1}\n{22222222}\n{3}\n", ItemForm::Lines, 4),
            [(1, "Text(\"{1}\")".into()), (2, "TooLong(10)".into()), (3, "Text(\"{3}\")".into())]
        );
        assert_eq!(items(b"{2}", ItemForm::Whole, 2), [(1, "TooLong(3)".into())]);
    }

    #[test]
    fn a_whole_item_becomes_one_line() {
        let one = items(b"{\n  \"a\": 1\r\n}\n", ItemForm::Whole, 64);
        assert_eq!(one, [(1, "Text(\"{   \\\"a\\\": 1  }\")".into())]);
    }

    #[test]
    fn bytes_that_are_no_text_are_told_apart() {
        assert_eq!(items(b"\xFF\n", ItemForm::Lines, 8), [(1, "NotText([255])".into())]);
    }

    #[test]
    fn files_of_items_are_found_at_any_depth() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(find_item_files(root.path()), Err(IndexError::NoItems(_))));
        for name in ["b/item.json", "a/0/items.ndjson", "a/0/page.html", "item.json/x"] {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = find_item_files(root.path()).unwrap();
        assert_eq!(
            found,
            [
                (root.path().join("a/0/items.ndjson"), ItemForm::Lines),
                (root.path().join("b/item.json"), ItemForm::Whole)
            ]
        );
        assert!(find_item_files(&root.path().join("none")).is_err());
    }
}
