//! Parameter-efficient fine-tuning of pretrained encoders.
//!
//! A [`Method`] decides which parameters are trained; [`Model::new`] builds the encoder once, asking the method for each
//! parameter and each linear layer by its path. There is no copy of the encoder per method, and one for all architectures: an
//! [`Architecture`] is a layout of it. Paths are Hugging Face's, options are PEFT's.
//!
//! ```no_run
//! use peft::{Batch, Method, Model, ModelOptions, Pretrained, Sequence};
//!
//! # fn main() -> peft::Result<()> {
//! let pretrained = Pretrained::load("all-MiniLM-L6-v2")?;
//! let model = Model::new(&pretrained, &ModelOptions::new(Method::lora(8), 2))?;
//! println!("{}", model.trainable_report());
//! let sequence = Sequence { input_ids: vec![101, 7592, 102], token_type_ids: vec![0; 3] };
//! let logits = model.predict(&Batch::new([&sequence], model.device())?)?; // (1, 2)
//! # Ok(())
//! # }
//! ```

mod architectures;
mod attention;
mod batch;
mod encoder;
mod error;
mod head;
mod layers;
mod layout;
mod method;
mod model;
mod parameters;
mod pretrained;
mod report;

pub use architectures::{Architecture, Config};
pub use batch::{Batch, Sequence};
pub use error::{Error, Result};
pub use layers::Pass;
pub use method::{BitFit, Lora, Method, Targets};
pub use model::{Model, ModelOptions, Pooling};
pub use ops::{Activation, Precision};
pub use parameters::{Parameters, is_head};
pub use pretrained::Pretrained;
pub use report::{TrainableReport, TrainableTensor, thousands};
