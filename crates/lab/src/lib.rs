//! What a notebook imports, as one dynamic library: everything it needs by name, tables, and charts.
//!
//! ```text
//! :dep lab = { path = "../crates/lab" }
//! use lab::prelude::*;
//! ```
//!
//! Tables and charts are drawn from [`trainer::Record`]s and nothing else. As the last expression of a cell, each shows
//! itself in several forms at once: a chart as plotly's JSON, HTML, SVG and text, a table as HTML and text. JupyterLab takes the
//! first, an exported page the second, paper the third.

pub mod benchmark;
mod canvas;
mod chart;
pub mod charts;
mod display;
mod error;
mod groups;
mod page;
mod palette;
mod plan;
mod plotly_figure;
pub mod prelude;
mod profile;
mod progress;
mod svg;
mod table;
pub mod tables;
mod text;
mod ticks;
mod tree;

pub use chart::{Axis, Chart, Figure, Mark, Point, Reference, Scale, Series};
pub use error::{Error, Result};
pub use page::{PlotlyJs, plotly_js};
pub use palette::{Colour, Marker, Style};
pub use table::Table;
pub use tree::Tree;
