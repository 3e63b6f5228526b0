//! How far training has moved a model: its trained numbers, and the function that its layers compute.

use candle_core::{DType, Device, Tensor};
use peft::{Batch, Model};
use serde::{Deserialize, Serialize};

use crate::data::TaskData;
use crate::error::Result;
use crate::run::Run;
use crate::trainer::Trainer;

/// Sequences of one forward pass.
const BATCH_SIZE: usize = 64;

/// What training has changed, against the model that the run began with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Movement {
    /// For each layer, `‖h' - h‖ / ‖h‖` of its output h before and h' after training, over all tokens of the sentences.
    pub layers: Vec<f64>,
    /// The root mean square of the trained numbers' changes, the classifier's left out.
    pub change: f64,
    /// How many numbers that are.
    pub count: usize,
    /// The root mean square of what those numbers were; 0 where a method begins at zero, as BitFit's new biases do.
    pub before: f64,
}

impl Movement {
    /// Between a model as it began and as it was trained, on these batches.
    ///
    /// # Errors
    /// When a batch does not fit the models.
    pub fn between(before: &Model, after: &Model, batches: &[Batch]) -> Result<Self> {
        let layers = before.config().num_hidden_layers;
        let (mut changes, mut sizes) = (vec![0.0; layers], vec![0.0; layers]);
        for batch in batches {
            // The first state goes into the first layer.
            let states = before.hidden_states(batch)?.into_iter().zip(after.hidden_states(batch)?).skip(1);
            for (layer, (old, new)) in states.enumerate() {
                changes[layer] += squares(&(new - &old)?)?;
                sizes[layer] += squares(&old)?;
            }
        }
        let (mut change, mut size, mut count) = (0.0, 0.0, 0);
        for (name, new) in after.parameters().trainable().filter(|(name, _)| !peft::is_head(name)) {
            let Some(old) = before.parameters().get(name) else { continue };
            change += squares(&(new.as_tensor() - old.as_tensor())?)?;
            size += squares(old)?;
            count += new.elem_count();
        }
        let of_each = |sum: f64| (sum / count.max(1) as f64).sqrt();
        let layers = changes.iter().zip(&sizes).map(|(change, size)| (change / size).sqrt()).collect();
        Ok(Self { layers, change: of_each(change), count, before: of_each(size) })
    }

    /// On the first so many validation examples.
    pub(crate) fn on_validation(before: &Model, after: &Model, data: &TaskData, examples: usize) -> Result<Self> {
        let sequences = data.validation.first().map_or(&[][..], |(_, validation)| &validation.sequences);
        let sequences = &sequences[..examples.min(sequences.len())];
        let batches = sequences.chunks(BATCH_SIZE).map(|part| Ok(Batch::new(part)?)).collect::<Result<Vec<_>>>()?;
        Self::between(before, after, &batches)
    }
}

/// The sum of the squares.
fn squares(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar()?)
}

impl Trainer {
    /// How far a run has moved its model by its best evaluation, on the first so many validation examples.
    ///
    /// # Errors
    /// When no weights were kept.
    pub fn movement(&mut self, run: &Run, examples: usize) -> Result<Movement> {
        let (before, after) = (self.untrained_model(run)?, self.trained_model(run)?);
        Movement::on_validation(&before, &after, &*self.data(run)?, examples)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use std::path::Path;

    use peft::{Method, ModelOptions, Pretrained, Sequence};

    use super::*;

    /// A shift of the last layer norm's bias by 0.5 is all of that layer's change, and none of the others'.
    #[test]
    fn a_shifted_bias_moves_its_layer_by_the_shift_and_no_layer_before_it() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peft/tests/oracle/tiny-bert");
        let pretrained = Pretrained::from_folder(&folder).unwrap();
        let model = || Model::new(&pretrained, &ModelOptions::new(Method::bitfit(), 2)).unwrap();
        let (before, after) = (model(), model());
        let bias = after.parameters().get("bert.encoder.layer.1.output.LayerNorm.bias").unwrap();
        bias.set(&(bias.as_tensor() + 0.5).unwrap()).unwrap();
        let sequence = |ids: [u32; 4]| Sequence { input_ids: ids.into(), token_type_ids: vec![0; 4] };
        let batches = [Batch::new(&[sequence([1, 2, 3, 4]), sequence([5, 6, 7, 8])]).unwrap()];

        let same = Movement::between(&before, &before, &batches).unwrap();
        assert_eq!((same.layers, same.change), (vec![0.0, 0.0], 0.0));
        let moved = Movement::between(&before, &after, &batches).unwrap();
        let states = before.hidden_states(&batches[0]).unwrap();
        let size = squares(states.last().unwrap()).unwrap();
        // 8 tokens of 32 numbers, each moved by 0.5.
        let expected = (8.0 * 32.0 * 0.25 / size).sqrt();
        assert_eq!(moved.layers[0], 0.0);
        assert!((moved.layers[1] - expected).abs() < 1e-6 * expected, "{:?} {expected}", moved.layers);
        let expected = (32.0 * 0.25 / moved.count as f64).sqrt();
        assert!((moved.change - expected).abs() < 1e-6 * expected, "{} {expected}", moved.change);
    }
}
