//! The same encoder in candle's basic operations, padded and masked, after the picture in Vaswani et al. 2017 and Devlin et
//! al. 2019. It shares no code with the crate: no packing, no operation with a backward pass of its own.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use peft::{Config, Model, Pooling, Sequence};

use crate::support::oracle_folder;

pub(crate) struct Reference {
    pub variables: BTreeMap<String, Var>,
    frozen: BTreeMap<String, Tensor>,
    config: Config,
    scaling: f64,
    pooling: Pooling,
}

impl Reference {
    /// The tiny checkpoint in f64, with variables of its own for what `model` trains, at the same values.
    pub(crate) fn of(model: &Model, scaling: f64, pooling: Pooling) -> Result<Self> {
        let copy = |(name, variable): (&str, &Var)| Ok((name.to_string(), Var::from_tensor(&variable.copy()?)?));
        let checkpoint = oracle_folder().join("tiny-bert/model.safetensors");
        let frozen = candle_core::safetensors::load(checkpoint, &Device::Cpu)?
            .into_iter()
            .map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::F64)?)))
            .collect::<Result<_>>()?;
        let variables = model.parameters().trainable().map(copy).collect::<Result<_>>()?;
        Ok(Self { variables, frozen, config: model.config().clone(), scaling, pooling })
    }

    fn parameter(&self, name: &str) -> &Tensor {
        self.variables.get(name).map_or_else(|| &self.frozen[name], |variable| variable.as_tensor())
    }

    fn linear(&self, x: &Tensor, path: &str) -> Result<Tensor> {
        let product = |x: &Tensor, name: &str| x.broadcast_matmul(&self.parameter(&format!("{path}.{name}")).t()?);
        let y = product(x, "weight")?.broadcast_add(self.parameter(&format!("{path}.bias")))?;
        if !self.variables.contains_key(&format!("{path}.lora_A.weight")) {
            return Ok(y);
        }
        y + (product(&product(x, "lora_A.weight")?, "lora_B.weight")? * self.scaling)?
    }

    fn layer_norm(&self, x: &Tensor, path: &str) -> Result<Tensor> {
        let centered = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let deviation = (centered.sqr()?.mean_keepdim(D::Minus1)? + self.config.layer_norm_eps)?.sqrt()?;
        centered
            .broadcast_div(&deviation)?
            .broadcast_mul(self.parameter(&format!("{path}.weight")))?
            .broadcast_add(self.parameter(&format!("{path}.bias")))
    }

    /// `x Φ(x)` by `erf`: the derivative of candle's `gelu_erf` has a constant of six digits.
    fn gelu(x: &Tensor) -> Result<Tensor> {
        (x * ((x / 2f64.sqrt())?.erf()? + 1.0)?)? * 0.5
    }

    fn embedding(&self, name: &str, ids: &[u32], batch: usize) -> Result<Tensor> {
        let ids = Tensor::new(ids, &Device::Cpu)?;
        let rows = self.parameter(&format!("bert.embeddings.{name}.weight")).index_select(&ids, 0)?;
        rows.reshape((batch, (), self.config.hidden_size))
    }

    fn attention(&self, hidden: &Tensor, mask: &Tensor, path: &str) -> Result<Tensor> {
        let (batch, length, width) = hidden.dims3()?;
        let heads = self.config.num_attention_heads;
        let split = |name: &str| {
            let x = self.linear(hidden, &format!("{path}.self.{name}"))?;
            x.reshape((batch, length, heads, width / heads))?.transpose(1, 2)?.contiguous() // (batch, heads, length, head_dim)
        };
        let (query, key, value) = (split("query")?, split("key")?, split("value")?);
        let scores = (query.matmul(&key.t()?.contiguous()?)? / ((width / heads) as f64).sqrt())?;
        let probabilities = candle_nn::ops::softmax(&scores.broadcast_add(mask)?, D::Minus1)?;
        let context = probabilities.matmul(&value)?.transpose(1, 2)?.contiguous()?.reshape((batch, length, width))?;
        let output = self.linear(&context, &format!("{path}.output.dense"))?;
        self.layer_norm(&(output + hidden)?, &format!("{path}.output.LayerNorm"))
    }

    /// What goes into the first layer and what comes out of each, `(batch, longest, hidden)`; and 1 for each token that is one.
    pub(crate) fn hidden_states(&self, sequences: &[Sequence]) -> Result<(Vec<Tensor>, Tensor)> {
        let (batch, longest) = (sequences.len(), sequences.iter().map(Sequence::len).max().unwrap_or(0));
        let pad = |ids: &dyn Fn(&Sequence) -> Vec<u32>| -> Vec<u32> {
            sequences.iter().flat_map(|s| ids(s).into_iter().chain(std::iter::repeat(0)).take(longest)).collect()
        };
        let positions = (0..longest as u32).collect::<Vec<_>>().repeat(batch);
        let mut hidden = ((self.embedding("word_embeddings", &pad(&|s| s.input_ids.clone()), batch)?
            + self.embedding("token_type_embeddings", &pad(&|s| s.token_type_ids.clone()), batch)?)?
            + self.embedding("position_embeddings", &positions, batch)?)?;
        hidden = self.layer_norm(&hidden, "bert.embeddings.LayerNorm")?;

        let kept = Tensor::new(pad(&|s| vec![1; s.len()]), &Device::Cpu)?.to_dtype(DType::F64)?;
        let mask = ((kept.reshape((batch, 1, 1, longest))? - 1.0)? * 1e30)?; // 0, or what no score outweighs
        let mut states = vec![hidden.clone()];
        for layer in 0..self.config.num_hidden_layers {
            let path = format!("bert.encoder.layer.{layer}");
            let attended = self.attention(&hidden, &mask, &format!("{path}.attention"))?;
            let inner = Self::gelu(&self.linear(&attended, &format!("{path}.intermediate.dense"))?)?;
            let output = self.linear(&inner, &format!("{path}.output.dense"))?;
            hidden = self.layer_norm(&(output + attended)?, &format!("{path}.output.LayerNorm"))?;
            states.push(hidden.clone());
        }
        Ok((states, kept.reshape((batch, longest))?))
    }

    /// The logits, `(batch, labels)`.
    pub(crate) fn forward(&self, sequences: &[Sequence]) -> Result<Tensor> {
        let (mut states, kept) = self.hidden_states(sequences)?;
        let (batch, longest) = kept.dims2()?;
        let hidden = states.swap_remove(states.len() - 1);
        let pooled = match self.pooling {
            Pooling::Cls => self.linear(&hidden.narrow(1, 0, 1)?.squeeze(1)?, "bert.pooler.dense")?.tanh()?,
            Pooling::Mean => {
                let kept = kept.reshape((batch, longest, 1))?;
                hidden.broadcast_mul(&kept)?.sum(1)?.broadcast_div(&kept.sum(1)?)?
            }
        };
        self.linear(&pooled, "classifier")
    }
}
