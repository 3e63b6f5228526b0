//! Compacter's layers, `x H + b` with `H = Σᵢ Aᵢ ⊗ Wᵢ`: parameters, some of them shared, and their initial values.

use candle_core::Tensor;

use super::{Compacter, PhmCInit};
use crate::builder::Builder;
use crate::error::Result;
use crate::parameters::Initializer;
use crate::tuners::bottleneck::Projection;

/// A parameterized hypercomplex multiplication layer (Zhang et al. 2021, equation 4).
pub(super) struct PhmLayer {
    rule: Factor,         // A (n, n, n)
    weight: Factor,       // W (n, inputs / n, outputs / n)
    bias: Option<Tensor>, // b (outputs)
}

impl PhmLayer {
    /// The layer `down` or `up` of the adapter in a module. Parameters have AdapterHub's names: the layer's own such as
    /// `bert.encoder.layer.0.output.adapter_down.W_left`, shared ones such as `bert.shared_parameters.phm_rule`.
    pub(super) fn new(
        builder: &mut Builder,
        compacter: &Compacter,
        module: &str,
        layer: &str,
        [inputs, outputs]: [usize; 2],
    ) -> Result<Self> {
        let (n, own) = (compacter.phm_dim, format!("{module}.adapter_{layer}"));
        let shared = format!("{}.shared_parameters", module.split('.').next().unwrap_or(module));
        let path = format!("{}.phm_rule", if compacter.shared_phm_rule { &shared } else { &own });
        let rank = compacter.factorized_phm_rule.then_some(1);
        let rule = Factor::new(builder, &path, [n, n, n], rank, |_, _| compacter.start_of_rule())?;
        let path = if compacter.shared_w_phm { format!("{shared}.W_{layer}") } else { format!("{own}.W") };
        let rank = compacter.factorized_phm_w.then_some(compacter.phm_rank);
        let weight = Factor::new(builder, &path, [n, inputs / n, outputs / n], rank, glorot)?;
        let mut bias = || builder.adapter(format!("{own}.b"), &[outputs], Initializer::Zeros);
        Ok(Self { rule, weight, bias: compacter.phm_bias.then(&mut bias).transpose()? })
    }
}

impl Projection for PhmLayer {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = ops::kronecker(&self.rule.matrices()?, &self.weight.matrices()?, 1.0)?; // (inputs, outputs)
        let product = ops::matrix_product(x, &h, 1.0)?; // (tokens, outputs)
        match &self.bias {
            Some(bias) => Ok(ops::add_bias(&product, bias)?),
            None => Ok(product),
        }
    }
}

/// A batch of matrices, or the left and the right sides of products.
struct Factor(Tensor, Option<Tensor>);

impl Factor {
    /// The parameters at a path, new ones where there are none yet. A `rank` makes them products. `start` is given the rows and columns
    /// of a matrix.
    fn new(
        builder: &mut Builder,
        path: &str,
        [batch, rows, columns]: [usize; 3],
        rank: Option<usize>,
        start: impl Fn(usize, usize) -> Initializer,
    ) -> Result<Self> {
        let mut parameter = |path: String, rows, columns| match builder.parameters.get(&path) {
            Some(shared) => Ok(shared.as_tensor().clone()),
            None => builder.adapter(path, &[batch, rows, columns], start(rows, columns)),
        };
        let Some(rank) = rank else { return Ok(Self(parameter(path.into(), rows, columns)?, None)) };
        let left = parameter(format!("{path}_left"), rows, rank)?;
        Ok(Self(left, Some(parameter(format!("{path}_right"), rank, columns)?)))
    }

    fn matrices(&self) -> Result<Tensor> {
        match &self.1 {
            Some(right) => Ok(ops::matrix_product(&self.0, right, 1.0)?),
            None => Ok(self.0.clone()),
        }
    }
}

impl Compacter {
    /// AdapterHub's (`methods/modeling.py`, `init_shared_parameters` and `PHMLayer.reset_parameters`).
    fn start_of_rule(&self) -> Initializer {
        match (self.phm_c_init, self.shared_phm_rule) {
            (PhmCInit::Normal, true) => Initializer::Normal { standard_deviation: self.phm_init_range },
            (PhmCInit::Normal, false) => Initializer::Normal { standard_deviation: 0.01 },
            (PhmCInit::Uniform, true) => Initializer::KaimingUniform { inputs: 1 }, // ±1
            (PhmCInit::Uniform, false) => Initializer::KaimingUniform { inputs: 10_000 }, // ±0.01
        }
    }
}

/// The normal distribution of Glorot and Bengio 2010, which is torch's `xavier_normal_`.
fn glorot(rows: usize, columns: usize) -> Initializer {
    Initializer::Normal { standard_deviation: (2.0 / (rows + columns) as f64).sqrt() }
}
