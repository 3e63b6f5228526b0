//! GLUE's tab-separated files: no quoting, a quotation mark is a character like any other.

use std::io::BufRead;
use std::path::Path;

use crate::error::{Error, Result};

/// A line of a file, cut at its tabs.
pub(crate) struct Line<'a> {
    /// From 1.
    pub number: usize,
    pub fields: Vec<&'a str>,
    /// Whether nothing ends it: the last line of a file that was cut, or that was written so.
    pub is_open: bool,
}

/// The lines of a file, read one after another, so that a large one is never in memory. A byte-order mark and carriage returns before line
/// ends are left out, as MRPC's source has both; so are lines without any character, which hold no row, as Python's `csv` passes over them.
pub(crate) struct Lines<'a, R> {
    path: &'a Path,
    reader: R,
    /// The bytes of the present line.
    line: Vec<u8>,
    /// From 1; 0 before the first.
    number: usize,
}

impl<'a, R: BufRead> Lines<'a, R> {
    pub(crate) fn new(path: &'a Path, reader: R) -> Self {
        Self { path, reader, line: Vec::new(), number: 0 }
    }

    /// The next line with a character in it; none at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<Line<'_>>> {
        loop {
            self.line.clear();
            let failed = |source| Error::Unreadable { path: self.path.into(), source };
            if self.reader.read_until(b'\n', &mut self.line).map_err(failed)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if self.number == 1 && self.line.starts_with(b"\xef\xbb\xbf") {
                self.line.drain(..3);
            }
            if !content(&self.line).is_empty() {
                break;
            }
        }
        let (number, is_open) = (self.number, !self.line.ends_with(b"\n"));
        let text = std::str::from_utf8(content(&self.line)).map_err(|invalid| {
            let at = invalid.valid_up_to();
            error(self.path, number, "UTF-8", format!("byte 0x{:02x} after {at} bytes", self.line[at]))
        })?;
        Ok(Some(Line { number, fields: text.split('\t').collect(), is_open }))
    }

    /// The error of a file that holds no line but these.
    pub(crate) fn missing(&self, expected: &str, found: &str) -> Error {
        error(self.path, self.number.max(1), expected, found)
    }
}

/// A line without its end.
fn content(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The fields of each line of a small file, with the line's number.
pub(crate) fn rows(path: &Path, bytes: &[u8]) -> Result<Vec<(usize, Vec<String>)>> {
    let (mut lines, mut rows) = (Lines::new(path, bytes), Vec::new());
    while let Some(line) = lines.next()? {
        rows.push((line.number, line.fields.into_iter().map(String::from).collect()));
    }
    if rows.is_empty() { Err(lines.missing("rows", "an empty file")) } else { Ok(rows) }
}

pub(crate) fn error(path: &Path, line: usize, expected: impl ToString, found: impl ToString) -> Error {
    Error::Line { path: path.into(), line, expected: expected.to_string(), found: found.to_string() }
}
