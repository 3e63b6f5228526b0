//! Shows the progress of runs on the standard output.

use std::io::{Stdout, stdout};

use trainer::LineLogger;

/// Whole lines.
pub fn logger() -> LineLogger<Stdout> {
    LineLogger::new(stdout())
}
