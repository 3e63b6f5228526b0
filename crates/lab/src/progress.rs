//! The progress of runs as a notebook shows it.

use std::io::{Stdout, stdout};

use trainer::LineLogger;

/// Whole lines below the cell, since a notebook shows a line only when it ends.
pub fn lines() -> LineLogger<Stdout> {
    LineLogger::new(stdout())
}
