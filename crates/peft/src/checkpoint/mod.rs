//! What a model's folder says, as transformers reads it: the configuration, the tensors, the labels of its classifier.

pub(crate) mod configuration;
mod labels;
mod remark;
mod tensors;

pub use configuration::Configuration;
pub(crate) use configuration::POOLING_FIELD;
pub(crate) use labels::LabelMatch;
pub use labels::LabelNames;
pub use remark::Remark;
pub(crate) use tensors::{INDEX, Tensors, WEIGHTS, part_names, weight_files};
