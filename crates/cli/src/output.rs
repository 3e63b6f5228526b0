//! What goes to the standard output and the standard error, and folders that results go to.
//!
//! A line that cannot be written ends nothing: a training is worth more than its lines. In this crate `println!`, `print!` and `eprintln!`
//! are those of this file, which do not panic. What the standard output did not take is told at the end, by [`lost`].

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Result, bail};
use trainer::check_writable;

macro_rules! println {
    ($($arguments:tt)*) => { $crate::output::print(format_args!("{}\n", format_args!($($arguments)*))) };
}

macro_rules! print {
    ($($arguments:tt)*) => { $crate::output::print(format_args!($($arguments)*)) };
}

macro_rules! eprintln {
    ($($arguments:tt)*) => { $crate::output::note(format_args!("{}\n", format_args!($($arguments)*))) };
}

/// Why the standard output did not take something, the first time.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// Writes to the standard output.
pub(crate) fn print(text: fmt::Arguments) {
    note_lost(io::stdout().lock().write_fmt(text));
}

/// Writes to the standard error. There is nowhere to tell that it could not be written.
pub(crate) fn note(text: fmt::Arguments) {
    let _ = io::stderr().lock().write_fmt(text);
}

fn note_lost(written: io::Result<()>) {
    if let Err(error) = written {
        let _ = LOST.set(error);
    }
}

/// Why something that was to go to the standard output did not, if so. Who has closed it has seen enough: that is no error.
pub(crate) fn lost() -> Option<&'static io::Error> {
    note_lost(io::stdout().flush());
    LOST.get().filter(|error| error.kind() != ErrorKind::BrokenPipe)
}

/// Fails if nothing can be written to the folder that an option names, or it is one of those that are read, by any spelling or link: what a
/// command reads from stays as it is.
pub(crate) fn check_output<'a>(option: &str, folder: &Path, read: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    if let Ok(output) = folder.canonicalize()
        && let Some(read) = read.into_iter().find(|read| read.canonicalize().is_ok_and(|read| read == output))
    {
        bail!(
            "{option} {} is the folder {} that is read from, and would be overwritten; name another",
            folder.display(),
            read.display()
        );
    }
    Ok(check_writable(folder)?)
}
