//! Prelude of a notebook: the names that its cells use.

pub use std::path::PathBuf;
pub use std::sync::Arc;

pub use candle_core::{self, DType, Device, Tensor, Var};
pub use glue::{Dataset, Glue, Metric, Split, Task, project_root};
pub use peft::{
    BitFit, Lora, Method, PTuning, Pooling, PrefixTuning, PromptTuning, Targets, TrainableReport, TrainableTree,
};
pub use plotly;
pub use polars::{self, prelude::DataFrame};
pub use trainer::study::{self, Search, SearchSpace, Study, best_record, best_run, over_ranks, over_seeds, search};
pub use trainer::{
    BiasChange, DeviceName, Evaluate, Predictions, Recipe, Record, Run, Settings, TaskData, Tokenizer, Trainer,
    predictions, results,
};

pub use crate::plan::Plan;
pub use crate::profile::Profile;
pub use crate::progress::lines;
pub use crate::table::Table;
pub use crate::tree::Tree;
pub use crate::verdicts::verdict;
pub use crate::{benchmark, charts, rates, studies, tables, verdicts};
