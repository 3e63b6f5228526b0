//! ModernBERT (Warner et al. 2024): norms first, rotary positions, gated feed-forward networks, and layers that see a window
//! between layers that see all (transformers' `modeling_modernbert.py`).

use ops::Activation;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::Fields;
use super::{Architecture, Config, activation, at_least, at_most, invalid, part, unsupported};
use crate::architectures::layout::{
    Dropouts, EmbeddingsLayout, HeadLayout, LayersLayout, Layout, NormOrder, PositionsLayout, ProjectionNames,
    RotaryLayout,
};

#[derive(Deserialize)]
struct Sizes {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(deserialize_with = "activation")]
    hidden_activation: Activation,
    max_position_embeddings: usize,
    norm_eps: f64,
    initializer_range: f64,
}

#[derive(Deserialize)]
struct Options {
    norm_bias: bool,
    attention_bias: bool,
    mlp_bias: bool,
    classifier_bias: bool,
    embedding_dropout: f64,
    attention_dropout: f64,
    mlp_dropout: f64,
    classifier_dropout: f64,
    #[serde(deserialize_with = "activation")]
    classifier_activation: Activation,
    local_attention: usize,
    layer_types: Option<Vec<LayerType>>,
    global_attn_every_n_layers: usize,
    rope_parameters: Option<RopeParameters>,
    global_rope_theta: f64,
    local_rope_theta: Option<f64>,
}

/// `configuration_modernbert.py`.
pub(super) fn fields() -> Fields {
    Fields {
        used: json!({
            "vocab_size": 50368, "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12,
            "intermediate_size": 1152, "hidden_activation": "gelu", "max_position_embeddings": 8192, "norm_eps": 1e-5,
            "initializer_range": 0.02, "norm_bias": false, "attention_bias": false, "mlp_bias": false,
            "classifier_bias": false, "embedding_dropout": 0.0, "attention_dropout": 0.0, "mlp_dropout": 0.0,
            "classifier_dropout": 0.0, "classifier_activation": "gelu",
            "local_attention": 128, "layer_types": null, "global_attn_every_n_layers": 3, "rope_parameters": null,
            "global_rope_theta": 160000.0, "local_rope_theta": 10000.0,
        }),
        without_effect: &[
            // How it is computed, and what masked-language modeling has.
            "decoder_bias",
            "deterministic_flash_attn",
            "initializer_cutoff_factor",
            "reference_compile",
            "repad_logits_with_grad",
            "sparse_pred_ignore_index",
            "sparse_prediction",
            // Tokens by their ids, which a tokenizer puts.
            "cls_token_id",
            // Of BERT's class: the published files have them, and the model has other norms and positions.
            "layer_norm_eps",
            "position_embedding_type",
        ],
        only: json!({ "head_dim": null, "rope_scaling": null, "sliding_window": null }),
    }
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
enum LayerType {
    #[serde(rename = "full_attention")]
    Full,
    #[serde(rename = "sliding_attention")]
    Sliding,
}

/// As transformers 5 writes them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RopeParameters {
    full_attention: Option<Rope>,
    sliding_attention: Option<Rope>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rope {
    rope_theta: Option<f64>,
    #[serde(default = "usual", alias = "type")]
    rope_type: String,
}

fn usual() -> String {
    "default".into()
}

impl Options {
    /// What a layer of that type turns by, and sees.
    fn rotary(&self, kind: LayerType) -> serde_json::Result<RotaryLayout> {
        let parameters = self.rope_parameters.as_ref();
        let (rope, theta, window) = match kind {
            LayerType::Full => (parameters.and_then(|p| p.full_attention.as_ref()), self.global_rope_theta, None),
            LayerType::Sliding => {
                // The window is counted to both sides together.
                let theta = self.local_rope_theta.unwrap_or(10_000.0);
                (parameters.and_then(|p| p.sliding_attention.as_ref()), theta, Some(self.local_attention / 2))
            }
        };
        if rope.is_some_and(|rope| rope.rope_type != "default") {
            return Err(unsupported("rope_parameters", "a rope_type other than default"));
        }
        let theta = rope.and_then(|rope| rope.rope_theta).unwrap_or(theta);
        if !(theta.is_finite() && theta > 0.0) {
            return Err(invalid(format!("rope_theta {theta}, expected a number above 0")));
        }
        Ok(RotaryLayout { theta, window })
    }
}

pub(super) fn read(json: &Value) -> serde_json::Result<(Config, Layout)> {
    let (sizes, options): (Sizes, Options) = (part(json)?, part(json)?);
    let every = options.global_attn_every_n_layers;
    let types = match &options.layer_types {
        Some(types) => types.clone(),
        None => {
            let kind = |index: usize| if index.is_multiple_of(every) { LayerType::Full } else { LayerType::Sliding };
            (0..sizes.num_hidden_layers).map(kind).collect()
        }
    };
    at_least("the number of layer_types", types.len(), sizes.num_hidden_layers)?;
    at_most("the number of layer_types", types.len(), sizes.num_hidden_layers)?;
    let config = Config {
        architecture: Architecture::ModernBert,
        vocab_size: sizes.vocab_size,
        hidden_size: sizes.hidden_size,
        num_hidden_layers: sizes.num_hidden_layers,
        num_attention_heads: sizes.num_attention_heads,
        intermediate_size: sizes.intermediate_size,
        hidden_act: sizes.hidden_activation,
        max_position_embeddings: sizes.max_position_embeddings,
        hidden_dropout_prob: options.mlp_dropout,
        attention_probs_dropout_prob: Some(options.attention_dropout),
        classifier_dropout: Some(options.classifier_dropout),
        layer_norm_eps: sizes.norm_eps,
        initializer_range: sizes.initializer_range,
    };
    // `_init_weights`, but that the tails of the normal distribution are left on.
    let deep = config.initializer_range / (2.0 * config.num_hidden_layers as f64).sqrt();
    let head = HeadLayout::new("head.dense", options.classifier_activation, options.classifier_dropout, deep);
    let layout = Layout {
        prefix: "model",
        bare: &["embeddings.", "layers.", "final_norm."],
        embeddings: EmbeddingsLayout {
            words: "embeddings.tok_embeddings",
            norm: "embeddings.norm",
            positions: None,
            token_types: 0,
            width: config.hidden_size,
            projection: None,
        },
        positions: PositionsLayout::Rotary(
            types.into_iter().map(|kind| options.rotary(kind)).collect::<Result<_, _>>()?,
        ),
        layers: LayersLayout {
            path: "layers",
            projections: ProjectionNames::Fused("attn.Wqkv"),
            attention_output: "attn.Wo",
            attention_norm: "attn_norm",
            attention_bias: options.attention_bias,
            intermediate: "mlp.Wi",
            output: "mlp.Wo",
            output_norm: "mlp_norm",
            feed_forward_bias: options.mlp_bias,
            gated: true,
        },
        order: NormOrder::First { last: "final_norm" },
        norm_bias: options.norm_bias,
        dropout: Dropouts {
            embeddings: options.embedding_dropout,
            positions: 0.0,
            attention: options.attention_dropout,
            attention_output: options.attention_dropout,
            intermediate: Some(options.mlp_dropout),
            output: None,
        },
        head: HeadLayout {
            dense_bias: options.classifier_bias,
            norm: Some("head.norm"),
            norm_bias: options.norm_bias,
            output_deviation: 1.0 / (config.hidden_size as f64).sqrt(),
            ..head
        },
    };
    Ok((config, layout))
}
