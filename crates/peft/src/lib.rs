//! Parameter-efficient fine-tuning of pretrained encoders.
//!
//! A [`Method`] decides which parameters are trained; [`Model::new`] builds the encoder once, asking the method for each
//! parameter and each linear layer by its path. There is no copy of the encoder per method, and one for all architectures: an
//! [`Architecture`] is a layout of it. Paths are Hugging Face's, options are PEFT's.
//!
//! From a checkpoint folder to a trained, saved and reloaded adapter, which Python's `peft` loads as well:
//!
//! ```
//! use candle_core::Tensor;
//! use peft::{Batch, ForwardPass, Method, Model, ModelOptions, Pretrained, Sequence};
//!
//! # fn main() -> peft::Result<()> {
//! # let checkpoint = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/tiny-bert");
//! # let temporary = tempfile::tempdir().map_err(candle_core::Error::wrap)?;
//! # let folder = temporary.path();
//! let pretrained = Pretrained::load(checkpoint)?;
//! let model = Model::new(&pretrained, &ModelOptions::new(Method::lora(8), 2))?;
//! println!("{}", model.trainable_report()); // trainable params: 2,114 || all params: 24,932 || trainable%: 8.4791
//!
//! let sentence = Sequence { input_ids: vec![1, 75, 92, 2], token_type_ids: vec![0; 4] };
//! let (batch, labels) = (Batch::new([&sentence])?, Tensor::new(&[1u32], &candle_core::Device::Cpu)?);
//! for step in 0..3 {
//!     let loss = ops::record(|| -> peft::Result<Tensor> {
//!         let logits = model.forward(&batch, &ForwardPass::training(&batch.segments, step))?; // (1, 2)
//!         Ok(ops::cross_entropy(&logits, &labels)?)
//!     })?;
//!     let gradients = loss.gradients()?;
//!     for (_, parameter) in model.parameters().trainable() {
//!         if let Some(gradient) = gradients.get(parameter) {
//!             parameter.set(&(parameter.as_tensor() - (gradient * 0.01)?)?)?; // the crate trainer has AdamW
//!         }
//!     }
//! }
//!
//! model.save_adapter(folder)?;
//! let (again, warnings) = Model::from_adapter(&pretrained, folder)?;
//! assert!(warnings.is_empty());
//! assert_eq!(again.predict(&batch)?.to_vec2::<f32>()?, model.predict(&batch)?.to_vec2::<f32>()?);
//! # assert_eq!(model.trainable_report().to_string(), "trainable params: 2,114 || all params: 24,932 || trainable%: 8.4791");
//! # Ok(())
//! # }
//! ```

mod adapter_files;
mod adapters;
mod architectures;
mod batch;
mod builder;
mod checkpoint;
mod encoder;
mod error;
mod files;
mod hub;
mod layers;
mod model;
mod numerics;
mod parameters;
mod pooling;
mod pretrained;
mod similar_names;
mod sizes;
mod targets;
mod tuners;
mod wrong_content;

pub use adapter_files::{Adapter, AdapterConfig, Conditions, Warning};
pub use adapters::{Adapters, Conversion};
pub use architectures::{Architecture, Config, FieldRole};
pub use batch::{Batch, Sequence};
pub use checkpoint::{Configuration, LabelNames, Remark};
pub use error::{ConfigError, Error, Result};
pub use layers::ForwardPass;
pub use model::{Model, ModelOptions};
pub use ops::{Activation, Precision};
pub use parameters::{Parameters, TrainableReport, TrainableTensor, TrainableTree, TreeParameter, is_head, thousands};
pub use pooling::Pooling;
pub use pretrained::{ModelFiles, Pretrained, model_name};
pub use targets::Targets;
pub use tuners::{
    AdaLora, AdapterStyle, AfterStep, Bias, BitFit, Bottleneck, Combination, CombinationType, Compacter,
    ConversionRank, ConvertedLayer, EvaConfig, FileField, Ia3, InitLoKrWeights, InitLoraWeights, InitWeights, LnTuning,
    LoHa, LoKr, Lora, LycorisInit, MajoritySignMethod, Method, MethodOption, Oft, OptionKind, PTuning, PhmCInit,
    PrefixInitWeights, PrefixTuning, PromptSizes, PromptTuning, PromptTuningInit, RankAllocator, Reparameterization,
    Vera,
};
pub use wrong_content::WrongContent;
