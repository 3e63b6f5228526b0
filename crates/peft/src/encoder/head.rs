//! What stands on an encoder: from a sequence's vector to its logits.

use candle_core::Tensor;
use ops::Activation;

use crate::architectures::Config;
use crate::architectures::layout::HeadLayout;
use crate::builder::Builder;
use crate::error::Result;
use crate::layers::{ForwardPass, LayerNorm, Linear};
use crate::parameters::Initializer;
use crate::pooling::Pooling;

/// A dense layer with an activation, where the architecture has one, then dropout and the output layer.
#[derive(Clone)]
pub(crate) struct Head {
    first_dropout: Option<f64>,
    dense: Option<(Linear, Activation)>,
    norm: Option<LayerNorm>,
    dropout: f64,
    output: Linear,
}

impl Head {
    /// Also checks the method's targets: what is built after the dense layer is no target.
    pub(crate) fn new(
        builder: &mut Builder,
        config: &Config,
        layout: &HeadLayout,
        pooling: Pooling,
        num_labels: usize,
    ) -> Result<Self> {
        let hidden = config.hidden_size;
        let new = |standard_deviation| Initializer::Normal { standard_deviation };
        let dense = match layout.has_dense(pooling) {
            true => {
                let initializer = new(layout.dense_deviation);
                let dense = builder.linear(layout.dense, hidden, hidden, layout.dense_bias, initializer)?;
                Some((dense, layout.activation))
            }
            false => None,
        };
        builder.check_targets()?;
        let norm = match layout.norm {
            Some(path) => {
                Some(builder.layer_norm(path, hidden, config.layer_norm_eps, layout.norm_bias, Initializer::Ones)?)
            }
            None => None,
        };
        let initializer = new(layout.output_deviation);
        Ok(Self {
            first_dropout: layout.first_dropout,
            dense,
            norm,
            dropout: layout.dropout,
            output: builder.linear(layout.output, hidden, num_labels, true, initializer)?,
        })
    }

    /// Every branch merged into its layer's weight.
    pub(crate) fn merge(self) -> Result<Self> {
        let dense = self.dense.map(|(dense, activation)| Ok::<_, crate::Error>((dense.merge()?, activation)));
        Ok(Self { dense: dense.transpose()?, ..self })
    }

    /// The logits, `(sequences, labels)`, of vectors `(sequences, hidden)`.
    pub(crate) fn forward(&self, vectors: &Tensor, pass: &ForwardPass) -> Result<Tensor> {
        let mut vectors = match self.first_dropout {
            Some(probability) => ops::dropout(vectors, pass.dropout(probability))?,
            None => vectors.clone(),
        };
        if let Some((dense, activation)) = &self.dense {
            vectors = ops::activation(&dense.forward(&vectors, pass)?, *activation)?;
        }
        if let Some(norm) = &self.norm {
            vectors = norm.forward(&vectors)?;
        }
        self.output.forward(&ops::dropout(&vectors, pass.dropout(self.dropout))?, pass)
    }
}
