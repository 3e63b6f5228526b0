//! Models whose adapters start from data: from what flows into their layers.

use super::{Model, ModelOptions};
use crate::batch::Batch;
use crate::error::Error;
use crate::pretrained::Pretrained;

impl Model {
    /// A model whose adapters start from `batches` of data, as the method says (LoRA with
    /// [`InitLoraWeights::Eva`](crate::InitLoraWeights::Eva)). The method of the model says what came of it, such as ranks.
    ///
    /// # Errors
    /// As [`Model::new`], or when the method does not start from data, or the batches are too few or too small for it.
    pub fn with_data<E: From<Error>>(
        pretrained: &Pretrained,
        options: &ModelOptions,
        batches: impl IntoIterator<Item = std::result::Result<Batch, E>>,
    ) -> std::result::Result<Self, E> {
        let Some(mut initializer) = options.method.config().data_initializer() else {
            return Err(Error::NotFromData { method: options.method.to_string() }.into());
        };
        let model = Self::new(pretrained, options)?;
        let mut has_data = false;
        for batch in batches {
            has_data = true;
            if !initializer.observe(model.adapted_inputs(&batch?)?, &model.parameters)? {
                break;
            }
        }
        if !has_data {
            return Err(Error::NoData { method: options.method.to_string() }.into());
        }
        let mut method = options.method.clone();
        method.change(|config| config.set_ranks(&initializer.ranks()))?;
        let model = Self::new(pretrained, &ModelOptions { method, ..options.clone() })?;
        initializer.set(&model.parameters)?;
        Ok(model)
    }
}
