//! The GLUE benchmark: its ten tasks with their data, labels, metrics and baselines, and the files its server takes.
//!
//! ```
//! use glue::{Glue, Split, Targets, Task};
//!
//! # fn main() -> glue::Result<()> {
//! let glue = Glue::synthetic("an example"); // or Glue::locate()
//! let validation = glue.load(Task::Synthetic, Split::Validation)?;
//! println!("{} rows from {}\n{}", validation.completeness, glue.origin(), validation.frame);
//! let all_equivalent = Targets::Classes(vec![1; validation.len()]);
//! if let Some(gold) = validation.targets()? {
//!     let scores = Task::Synthetic.score(&all_equivalent, &gold)?;
//!     assert_eq!(scores.get(glue::Metric::Accuracy), Some(0.5));
//! }
//! # Ok(())
//! # }
//! ```

// The Rust of the README is compiled with this crate's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod dataset;
mod download;
mod error;
mod location;
pub mod metrics;
pub mod number;
mod overlap;
mod published;
pub mod submission;
mod synthetic;
mod task;
mod tsv;
pub mod variables;

pub use dataset::{Completeness, Dataset, Example};
pub use download::DownloadEvent;
pub use error::{Error, Result};
pub use location::{Glue, Origin, project_root};
pub use metrics::{Metric, Scores, Targets};
pub use overlap::Overlap;
pub use published::{Published, PublishedModel};
pub use task::{Baseline, Split, Task};
