//! Several adapters: side by side on one base model, combined into one, converted to LoRA.

mod collection;
mod combination;
mod conversion;

pub use collection::Adapters;
pub use conversion::Conversion;
