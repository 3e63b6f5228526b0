//! Fine-tuning on GLUE: from a [`Run`], which says everything that determines a result, to its [`Record`].
//!
//! ```no_run
//! use glue::{Glue, Task};
//! use peft::Method;
//! use trainer::{Run, Trainer};
//!
//! # fn main() -> trainer::Result<()> {
//! let mut trainer = Trainer::new(Glue::locate()?, "runs");
//! let run = Run::new(Task::Mrpc, "all-MiniLM-L6-v2", Method::lora(8)).with(|s| s.epochs = 5);
//! let record = trainer.run(&run)?;
//! println!("{:.3} with {} parameters", record.best_score(), record.parameters.trainable);
//! # Ok(())
//! # }
//! ```

#![warn(clippy::print_stdout, clippy::print_stderr)]

// The Rust of the README and of docs/ is compiled with this crate's examples.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct CrateReadme;
#[cfg(doctest)]
#[doc = include_str!("../../../docs/adapters.md")]
struct AdaptersGuide;

mod batches;
mod biases;
mod checkpoint;
mod claim;
mod data;
mod device;
mod environment;
mod error;
mod evaluation;
mod events;
mod files;
mod inputs;
mod integrity;
mod job;
mod limits;
mod line_logger;
mod losses;
mod movement;
mod npz;
pub mod numbers;
mod panics;
pub mod predictions;
pub mod progress;
pub mod provenance;
mod recipe;
mod record;
mod replay;
pub mod results;
mod run;
mod scheduler;
mod speed;
pub mod statistics;
pub mod study;
pub mod submission;
pub mod summary;
mod tensorboard;
mod token_cache;
mod tokenizer;
mod trainer;
mod training;
pub mod verdict;

pub use crate::files::{check_space, check_writable};
pub use biases::BiasChange;
pub use data::{Labeled, TaskData};
pub use device::DeviceName;
pub use environment::environment;
pub use error::{Error, Result};
pub use evaluation::{evaluate, predict};
pub use events::{Event, JobLogger, Logger, Place, Silent};
pub use inputs::Inputs;
pub use line_logger::LineLogger;
pub use movement::Movement;
pub use predictions::Predictions;
pub use recipe::Recipe;
pub use record::{DataSummary, Environment, Evaluation, ParameterCounts, Record, StepLoss, Stop};
pub use replay::{InitialValues, Passes, Replayed, replay};
pub use run::{DEFAULT_MODEL, Evaluate, Run, SavedAdapter, Settings, StartsFrom};
pub use speed::Speed;
pub use tensorboard::TensorBoard;
pub use tokenizer::Tokenizer;
pub use trainer::Trainer;
pub use training::observers::CheckpointEvery;

pub use glue;
pub use ops::{limit_threads, most_threads};
pub use peft;
