//! P-tuning.

use ops::Activation;
use serde::{Deserialize, Serialize};

use super::{PromptEncoder, at_least_one};
use crate::error::{Error, Result};
use crate::parameters::{Builder, Start};

pub(super) const NAME: &str = "P-tuning";

/// P-tuning (Liu et al. 2021, section 3.2), in the words of PEFT's `PromptEncoderConfig` (`tuners/p_tuning/config.py`): the vectors
/// before the embeddings of a sequence's words are made of a table `(num_virtual_tokens, width)` by a network, three linear layers
/// with ReLU between them (`tuners/p_tuning/model.py`, `PromptEncoder`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PTuning {
    /// How many vectors.
    pub num_virtual_tokens: usize,
    /// The kind of network.
    pub encoder_reparameterization_type: Reparameterization,
    /// The width between its layers; `None`: that of the embeddings, as in PEFT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_hidden_size: Option<usize>,
    /// Layers of an LSTM. An MLP has its three.
    pub encoder_num_layers: usize,
    /// Dropout between the layers of an LSTM.
    pub encoder_dropout: f64,
    /// Modules that are trained whole, by the end of their path, besides the head.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// Whether the vectors stand without the network that made them: files hold no other.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub inference_mode: bool,
}

/// The network that makes P-tuning's vectors (PEFT's `encoder_reparameterization_type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Reparameterization {
    /// Linear layers with ReLU.
    #[default]
    Mlp,
    /// An LSTM in both directions under two linear layers. Its vectors are read from files; it is not trained here.
    Lstm,
}

impl Default for PTuning {
    /// 20 virtual tokens; PEFT has no default for their number. The rest is PEFT's.
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            encoder_reparameterization_type: Reparameterization::Mlp,
            encoder_hidden_size: None,
            encoder_num_layers: 2,
            encoder_dropout: 0.0,
            modules_to_save: Vec::new(),
            inference_mode: false,
        }
    }
}

impl PTuning {
    pub(crate) fn check(&self) -> Result<()> {
        at_least_one(NAME, "num_virtual_tokens", self.num_virtual_tokens)?;
        if let Some(width) = self.encoder_hidden_size {
            at_least_one(NAME, "encoder_hidden_size", width)?;
        }
        if self.encoder_reparameterization_type == Reparameterization::Lstm && !self.inference_mode {
            let (field, found) = ("encoder_reparameterization_type", "LSTM".into());
            let expected = "MLP; an LSTM's virtual tokens are read from files, but not trained";
            return Err(Error::Adapter { method: NAME, field, found, expected });
        }
        Ok(())
    }

    /// What makes the vectors, as wide as the table of words.
    pub(crate) fn build(&self, builder: &mut Builder, width: usize) -> Result<PromptEncoder> {
        if self.inference_mode {
            return PromptEncoder::table(builder, self.num_virtual_tokens, width, Start::Zeros);
        }
        let start = Start::Normal { standard_deviation: 1.0 };
        let table = PromptEncoder::table(builder, self.num_virtual_tokens, width, start)?;
        let inner = self.encoder_hidden_size.unwrap_or(width);
        table.under(builder, "mlp_head", &[inner, inner, width], Activation::Relu, false)
    }
}
