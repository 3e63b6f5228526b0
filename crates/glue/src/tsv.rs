//! GLUE's tab-separated files: no quoting, a quotation mark is a character like any other.

use std::path::Path;

use crate::error::{Error, Result};

/// A line of a file, cut at its tabs.
pub(crate) struct Line<'a> {
    /// From 1.
    pub number: usize,
    pub fields: Vec<&'a str>,
}

/// The lines of a file. A byte-order mark and carriage returns before line ends are left out, as MRPC's source has both; so are lines
/// without any character, which hold no row, as Python's `csv` passes over them.
pub(crate) fn lines<'a>(path: &Path, bytes: &'a [u8]) -> Result<Vec<Line<'a>>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let lines: Vec<Line> = bytes
        .split(|&byte| byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| {
            let text = std::str::from_utf8(line).map_err(|invalid| {
                let byte = line[invalid.valid_up_to()];
                error(path, index + 1, "UTF-8", format!("byte 0x{byte:02x} after {} bytes", invalid.valid_up_to()))
            })?;
            Ok(Line { number: index + 1, fields: text.split('\t').collect() })
        })
        .collect::<Result<_>>()?;
    if lines.is_empty() {
        return Err(error(path, 1, "rows", "an empty file"));
    }
    Ok(lines)
}

pub(crate) fn error(path: &Path, line: usize, expected: impl ToString, found: impl ToString) -> Error {
    Error::Line { path: path.into(), line, expected: expected.to_string(), found: found.to_string() }
}
