//! Self-attention, and what it knows of positions.

use std::sync::Arc;

use candle_core::Tensor;
use ops::{AttentionOptions, RelativeRows, Scores, Segments};

use crate::architectures::Config;
use crate::architectures::layout::{DisentangledLayout, Layout, PositionsLayout, ProjectionNames};
use crate::builder::Builder;
use crate::error::Result;
use crate::layers::{ForwardPass, LayerNorm, Linear, Prefix};
use crate::parameters::Initializer;

/// Whose hidden states a layer works out. Of the last layer a head may read the first token's only.
#[derive(Clone, Copy)]
pub(crate) enum Wanted {
    AllTokens,
    FirstTokens,
}

impl Wanted {
    /// The rows of whom is wanted: `(tokens, hidden)`, or `(sequences, hidden)`.
    pub(crate) fn of(self, hidden: &Tensor, pass: &ForwardPass) -> Result<Tensor> {
        Ok(match self {
            Self::AllTokens => hidden.clone(),
            Self::FirstTokens => ops::first_tokens(hidden, pass.segments)?,
        })
    }
}

/// The tables of positions that all layers share.
#[derive(Clone)]
pub(crate) enum Shared {
    Nothing,
    Bias(Tensor), // (rows, heads)
    Embeddings(Arc<RelativeEmbeddings>),
}

impl Shared {
    pub(super) fn new(builder: &mut Builder, config: &Config, layout: &Layout) -> Result<Self> {
        Ok(match &layout.positions {
            PositionsLayout::Absolute | PositionsLayout::Rotary(_) => Self::Nothing,
            PositionsLayout::Bias { table, buckets, .. } => {
                let shape = [*buckets, config.num_attention_heads];
                Self::Bias(builder.parameter(&layout.path(table), "weight", &shape, Initializer::Pretrained)?)
            }
            PositionsLayout::Disentangled(positions) => {
                Self::Embeddings(Arc::new(RelativeEmbeddings::new(builder, config, layout, positions)?))
            }
        })
    }
}

/// DeBERTa's table of relative positions, normed if the layout says so.
pub(crate) struct RelativeEmbeddings {
    table: Tensor, // (rows, hidden)
    norm: Option<LayerNorm>,
}

impl RelativeEmbeddings {
    fn new(builder: &mut Builder, config: &Config, layout: &Layout, positions: &DisentangledLayout) -> Result<Self> {
        let (hidden, epsilon) = (config.hidden_size, config.layer_norm_eps);
        let shape = [positions.count, hidden];
        let table = builder.parameter(&layout.path(positions.table), "weight", &shape, Initializer::Pretrained)?;
        let Some(name) = positions.norm else { return Ok(Self { table, norm: None }) };
        let norm = builder.layer_norm(&layout.path(name), hidden, epsilon, true, Initializer::Pretrained)?;
        if table.track_op() || norm.is_trained() {
            return Ok(Self { table, norm: Some(norm) });
        }
        Ok(Self { table: norm.forward(&table)?, norm: None }) // Frozen: once for all passes.
    }

    fn forward(&self) -> Result<Tensor> {
        self.norm.as_ref().map_or_else(|| Ok(self.table.clone()), |norm| norm.forward(&self.table))
    }
}

/// The projections to queries, keys and values.
#[derive(Clone)]
enum Projections {
    Separate {
        query: Linear,
        key: Linear,
        value: Linear,
    },
    /// All three from one layer, in this order.
    Fused(Linear),
}

/// What a layer's scores know of positions.
#[derive(Clone)]
enum Positions {
    Absolute,
    Bias { table: Tensor, rows: RelativeRows },
    Disentangled(Disentangled),
    Rotary { theta: f64, window: Option<usize> },
}

/// Disentangled attention's positions (He et al. 2021, section 3.1).
#[derive(Clone)]
struct Disentangled {
    embeddings: Arc<RelativeEmbeddings>,
    rows: RelativeRows,
    /// Whether a query meets the position of a key.
    to_position: bool,
    /// Whether a key meets the position of a query.
    to_content: bool,
    /// What projects positions as keys; `None`: what projects the keys.
    key: Option<Linear>,
    /// What projects positions as queries; `None`: what projects the queries.
    query: Option<Linear>,
    dropout: f64,
}

#[derive(Clone)]
pub(crate) struct SelfAttention {
    projections: Projections,
    positions: Positions,
    heads: usize,
    dropout: f64,
}

/// A layer's keys and values, and what its queries come from.
pub(crate) struct Keys<'a> {
    key: Tensor, // (tokens, hidden), or with a prefix before each sequence (tokens + sequences * virtual tokens, hidden)
    value: Tensor, // likewise
    queries: Queries<'a>,
    virtual_tokens: usize,
}

enum Queries<'a> {
    /// From a projection of their own, for whom is wanted only.
    Projection(&'a Linear),
    /// Made with the keys, for all tokens.
    Made(Tensor), // (tokens, hidden)
}

impl SelfAttention {
    pub(super) fn new(
        builder: &mut Builder,
        config: &Config,
        layout: &Layout,
        shared: &Shared,
        index: usize,
    ) -> Result<Self> {
        let hidden = config.hidden_size;
        let mut linear = |name: &str, outputs| {
            let path = layout.layer_path(index, name);
            builder.linear(&path, hidden, outputs, layout.layers.attention_bias, Initializer::Pretrained)
        };
        let projections = match layout.layers.projections {
            ProjectionNames::Separate { query, key, value } => Projections::Separate {
                query: linear(query, hidden)?,
                key: linear(key, hidden)?,
                value: linear(value, hidden)?,
            },
            ProjectionNames::Fused(name) => Projections::Fused(linear(name, 3 * hidden)?),
        };
        let positions = match (&layout.positions, shared) {
            (PositionsLayout::Bias { rows, .. }, Shared::Bias(table)) => {
                Positions::Bias { table: table.clone(), rows: rows.clone() }
            }
            (PositionsLayout::Disentangled(positions), Shared::Embeddings(embeddings)) => {
                let mut own = |takes_part: bool, name: Option<&str>| {
                    takes_part.then_some(name).flatten().map(|name| linear(name, hidden)).transpose()
                };
                Positions::Disentangled(Disentangled {
                    embeddings: embeddings.clone(),
                    rows: positions.rows.clone(),
                    to_position: positions.to_position,
                    to_content: positions.to_content,
                    key: own(positions.to_position, positions.key)?,
                    query: own(positions.to_content, positions.query)?,
                    dropout: layout.dropout.positions,
                })
            }
            (PositionsLayout::Rotary(layers), _) if index < layers.len() => {
                Positions::Rotary { theta: layers[index].theta, window: layers[index].window }
            }
            _ => Positions::Absolute,
        };
        Ok(Self { projections, positions, heads: config.num_attention_heads, dropout: layout.dropout.attention })
    }

    /// Every branch merged into its layer's weight.
    pub(super) fn merge(self) -> Result<Self> {
        let projections = match self.projections {
            Projections::Separate { query, key, value } => {
                Projections::Separate { query: query.merge()?, key: key.merge()?, value: value.merge()? }
            }
            Projections::Fused(all) => Projections::Fused(all.merge()?),
        };
        let positions = match self.positions {
            Positions::Disentangled(positions) => Positions::Disentangled(Disentangled {
                key: positions.key.map(Linear::merge).transpose()?,
                query: positions.query.map(Linear::merge).transpose()?,
                ..positions
            }),
            other => other,
        };
        Ok(Self { projections, positions, ..self })
    }

    /// The keys and values of hidden states `(tokens, hidden)`, behind those of the prefix. Of whom is wanted, [`SelfAttention::attend`]
    /// is given the rows of the same hidden states.
    pub(super) fn keys(
        &self,
        hidden: &Tensor,
        prefix: Option<&Prefix>,
        pass: &ForwardPass,
        wanted: Wanted,
    ) -> Result<Keys<'_>> {
        let mut keys = self.own_keys(hidden, pass, wanted)?;
        if let Some(prefix) = prefix {
            keys.key = ops::prepend(&prefix.key, &keys.key, pass.segments)?;
            keys.value = ops::prepend(&prefix.value, &keys.value, pass.segments)?;
            keys.virtual_tokens = prefix.virtual_tokens();
        }
        Ok(keys)
    }

    fn own_keys(&self, hidden: &Tensor, pass: &ForwardPass, wanted: Wanted) -> Result<Keys<'_>> {
        let virtual_tokens = 0;
        match &self.projections {
            Projections::Separate { query, key, value } => {
                let (made, queries) = match wanted {
                    Wanted::AllTokens => {
                        let mut made = Linear::forward_together([key, value, query], hidden, pass)?;
                        let query = made.remove(2);
                        (made, Queries::Made(query))
                    }
                    Wanted::FirstTokens => {
                        (Linear::forward_together([key, value], hidden, pass)?, Queries::Projection(query))
                    }
                };
                Ok(Keys { key: made[0].clone(), value: made[1].clone(), queries, virtual_tokens })
            }
            Projections::Fused(all) => {
                let all = all.forward(hidden, pass)?; // (tokens, 3 * hidden)
                let width = hidden.dim(1)?;
                let part = |part: usize| ops::narrow_columns(&all, part * width..(part + 1) * width);
                Ok(Keys { queries: Queries::Made(part(0)?), key: part(1)?, value: part(2)?, virtual_tokens })
            }
        }
    }

    /// What the wanted ones, with these hidden states, gather from their sequences: of the shape of `hidden`.
    pub(super) fn attend(&self, keys: Keys, hidden: &Tensor, pass: &ForwardPass, wanted: Wanted) -> Result<Tensor> {
        let (segments, heads) = (pass.segments, self.heads);
        let Keys { mut key, value, queries, virtual_tokens } = keys;
        let query = match queries {
            Queries::Projection(query) => query.forward(hidden, pass)?,
            Queries::Made(query) => wanted.of(&query, pass)?,
        };
        let attend = |query: &Tensor, key: &Tensor, scores: Scores| {
            let options = AttentionOptions { heads, scores, dropout: pass.dropout(self.dropout) };
            ops::attention(query, key, &value, segments, options)
        };
        Ok(match &self.positions {
            Positions::Absolute => attend(&query, &key, Scores::Content)?,
            Positions::Bias { table, rows } => attend(&query, &key, Scores::Bias { table, rows })?,
            Positions::Disentangled(positions) => {
                let (key_positions, query_positions) = self.project(positions, pass)?;
                let (to_position, to_content) = (key_positions.as_ref(), query_positions.as_ref());
                let scores = Scores::Disentangled { key: to_position, query: to_content, rows: &positions.rows };
                attend(&query, &key, scores)?
            }
            Positions::Rotary { theta, window } => {
                let query = match wanted {
                    Wanted::AllTokens => ops::rotary(&query, segments, heads, *theta, virtual_tokens)?,
                    // The angle of a first token is zero.
                    Wanted::FirstTokens if virtual_tokens == 0 => query,
                    Wanted::FirstTokens => {
                        let first = Segments::from_lengths(&vec![1; segments.len()]);
                        ops::rotary(&query, &first, heads, *theta, virtual_tokens)?
                    }
                };
                key = ops::rotary(&key, &segments.lengthened(virtual_tokens), heads, *theta, 0)?;
                attend(&query, &key, window.map_or(Scores::Content, Scores::Window))?
            }
        })
    }

    /// The positions as keys and as queries, `(rows, hidden)` each.
    fn project(&self, positions: &Disentangled, pass: &ForwardPass) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let table = ops::dropout(&positions.embeddings.forward()?, pass.dropout(positions.dropout))?;
        let (shared_key, shared_query) = match &self.projections {
            Projections::Separate { query, key, .. } => (Some(key), Some(query)),
            Projections::Fused(_) => (None, None),
        };
        let project = |takes_part: bool, own: &Option<Linear>, shared: Option<&Linear>| {
            let projection = own.as_ref().or(shared).filter(|_| takes_part);
            projection.map(|projection| projection.forward(&table, pass)).transpose()
        };
        let key = project(positions.to_position, &positions.key, shared_key)?;
        Ok((key, project(positions.to_content, &positions.query, shared_query)?))
    }
}
