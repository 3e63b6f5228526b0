//! Which biases a run of BitFit has changed, and by how much.

use candle_core::{DType, Device, Tensor};

use crate::error::Result;
use crate::run::Run;
use crate::trainer::Trainer;

/// How far training has moved a bias vector.
#[derive(Clone, Debug, PartialEq)]
pub struct BiasChange {
    /// Of which layer it is, counted from 0.
    pub layer: usize,
    /// Its module within the layer, such as `attention.attn.q` or `intermediate.dense`.
    pub module: String,
    /// The mean of `|b' - b|` over the vector (Ben Zaken et al. 2022, figure 3).
    pub change: f64,
}

impl Trainer {
    /// How far a run has moved each bias of the encoder's layers by its best evaluation, in the order of the layers. Empty for a run that
    /// trains none.
    ///
    /// # Errors
    /// When no weights were kept.
    pub fn bias_changes(&mut self, run: &Run) -> Result<Vec<BiasChange>> {
        let (before, after) = (self.untrained_model(run)?, self.trained_model(run)?);
        let mut changes = Vec::new();
        for (name, new) in after.parameters().trainable() {
            let (Some((layer, module)), Some(old)) = (place(name), before.parameters().get(name)) else { continue };
            let change = mean_of_magnitudes(&(new.as_tensor() - old.as_tensor())?)?;
            changes.push(BiasChange { layer, module: module.into(), change });
        }
        changes.sort_by_key(|change| change.layer);
        Ok(changes)
    }
}

/// The layer and the module of a bias, as in `encoder.layer.3.attention.attn.q.bias`.
fn place(name: &str) -> Option<(usize, &str)> {
    let module = name.strip_suffix(".bias")?;
    let (_, inner) = module.split_once(".layer.").or_else(|| module.split_once(".layers."))?;
    let (layer, module) = inner.split_once('.')?;
    Some((layer.parse().ok()?, module))
}

fn mean_of_magnitudes(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.abs()?.mean_all()?.to_scalar()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_of_a_layer_is_told_by_its_name_in_every_architecture() {
        for (name, expected) in [
            ("encoder.layer.3.attention.attn.q.bias", Some((3, "attention.attn.q"))),
            ("bert.encoder.layer.11.output.LayerNorm.bias", Some((11, "output.LayerNorm"))),
            ("model.layers.0.mlp.Wi.bias", Some((0, "mlp.Wi"))),
            ("bert.embeddings.LayerNorm.bias", None),
            ("encoder.layer.3.attention.attn.q.weight", None),
        ] {
            assert_eq!(place(name), expected, "{name}");
        }
    }
}
