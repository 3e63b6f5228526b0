//! Parameters by path: names, initial values, which are trained, and how they are counted and shown.

mod initializer;
mod names;
mod registry;
mod report;
mod tree;

pub(crate) use initializer::{Initializer, generator};
pub use names::is_head;
pub(crate) use names::{CLASSIFIER, HEADS, Modules, POOLER, PROMPT_ENCODER, is_of_prompt};
pub use registry::Parameters;
pub use report::{TrainableReport, TrainableTensor, thousands};
pub use tree::{TrainableTree, TreeParameter};
