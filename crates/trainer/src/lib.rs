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

mod batches;
mod checkpoint;
mod data;
mod device;
mod error;
mod evaluation;
mod files;
mod optimizer;
mod profile;
mod progress;
mod record;
mod replay;
mod replicas;
mod run;
mod schedule;
mod several;
mod sitting;
pub mod statistics;
mod step;
pub mod study;
mod tokenizer;
mod trainer;
mod training;

pub use batches::epoch_batches;
pub use data::{Labelled, TaskData};
pub use device::DeviceName;
pub use error::{Error, Result};
pub use evaluation::{evaluate, predict};
pub use profile::{DEFAULT_MODEL, Profile};
pub use progress::Verbosity;
pub use record::{DataSummary, Environment, Evaluation, ParameterCounts, Record, StepLoss, Stop};
pub use replay::{Passes, Replayed, Start, replay};
pub use run::{Evaluate, Run, Settings};
pub use schedule::Schedule;
pub use tokenizer::Tokenizer;
pub use trainer::{Trainer, environment};

pub use glue;
pub use peft;
