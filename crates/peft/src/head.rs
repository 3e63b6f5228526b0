//! What stands on an encoder: from a sequence's vector to its logits.

use candle_core::Tensor;
use ops::Activation;

use crate::architectures::Config;
use crate::error::Result;
use crate::layers::{Linear, Pass};
use crate::layout::HeadLayout;
use crate::model::ModelOptions;
use crate::parameters::{Builder, Start};

/// A dense layer with an activation, where the architecture has one, then dropout and the output layer.
pub(crate) struct Head {
    first_dropout: Option<f64>,
    dense: Option<(Linear, Activation)>,
    dropout: f64,
    output: Linear,
}

impl Head {
    /// Also checks the method's targets: what is built after the dense layer is no target.
    pub fn new(builder: &mut Builder, config: &Config, layout: &HeadLayout, options: &ModelOptions) -> Result<Self> {
        let hidden = config.hidden_size;
        let new = Start::Normal { standard_deviation: config.initializer_range };
        let dense = match layout.has_dense(options.pooling) {
            true => Some((Linear::new(builder, layout.dense, hidden, hidden, new)?, layout.activation)),
            false => None,
        };
        builder.check_targets()?;
        Ok(Self {
            first_dropout: layout.first_dropout,
            dense,
            dropout: layout.dropout,
            output: Linear::new(builder, layout.output, hidden, options.num_labels, new)?,
        })
    }

    /// Every branch merged into its layer's weight.
    pub fn merge(self) -> Result<Self> {
        let dense = self.dense.map(|(dense, activation)| Ok::<_, crate::Error>((dense.merge()?, activation)));
        Ok(Self { dense: dense.transpose()?, ..self })
    }

    /// The logits, `(sequences, labels)`, of vectors `(sequences, hidden)`.
    pub fn forward(&self, vectors: &Tensor, pass: &Pass) -> Result<Tensor> {
        let mut vectors = match self.first_dropout {
            Some(probability) => ops::dropout(vectors, pass.dropout(probability))?,
            None => vectors.clone(),
        };
        if let Some((dense, activation)) = &self.dense {
            vectors = ops::activation(&dense.forward(&vectors, pass)?, *activation)?;
        }
        self.output.forward(&ops::dropout(&vectors, pass.dropout(self.dropout))?, pass)
    }
}
