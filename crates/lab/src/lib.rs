//! What a notebook imports, as one dynamic library: everything it needs by name, tables, and charts.
//!
//! ```text
//! :dep lab = { path = "../crates/lab" }
//! use lab::prelude::*;
//! ```
//!
//! Tables and charts are drawn from [`trainer::Record`]s and nothing else. As the last expression of a cell, each shows
//! itself in several forms at once: a chart as plotly's JSON and text, a table as HTML and text. What runs or exports a notebook adds
//! a still picture of each chart, drawn by plotly.js.

pub mod benchmark;
mod chart;
pub mod charts;
mod display;
mod error;
mod groups;
mod palette;
mod plan;
mod plot;
pub mod prelude;
mod profile;
mod progress;
pub mod rates;
pub mod studies;
mod table;
pub mod tables;
mod text;
mod tree;
pub mod verdicts;

pub use chart::{Axis, Chart, Figure, Mark, Point, Reference, Scale, Series};
pub use error::{Error, Result};
pub use palette::Style;
pub use table::Table;
pub use tree::Tree;
