//! LoRA's branch, `y += (α / r) B A dropout(x)`, and DoRA's, which rescales the rows of `W + (α / r) B A`: parameters, initial values,
//! merging.

use candle_core::{DType, Device, Tensor};
use ops::{Lora, Precision, Weight};

use super::config::InitLoraWeights;
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::layers::{BaseLayer, ForwardPass, LinearAdapter, LowRankBranch};
use crate::numerics::{qr, svd};
use crate::parameters::Initializer;

/// What one linear layer's branch is made from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Branch {
    pub(super) r: usize,
    pub(super) scaling: f64,
    pub(super) dropout: f64,
    pub(super) initial: InitLoraWeights,
    pub(super) use_dora: bool,
}

impl Branch {
    /// The branch's parameters, and the weight `(out, in)` that it stands beside: the layer's own, or a residual of it.
    pub(super) fn build(
        self,
        builder: &mut Builder,
        path: &str,
        weight: Tensor,
    ) -> Result<(Box<dyn LinearAdapter>, Tensor)> {
        let (outputs, inputs) = weight.dims2()?;
        let Self { r, scaling, dropout, .. } = self;
        let (a_path, b_path) = (format!("{path}.lora_A.weight"), format!("{path}.lora_B.weight"));
        let factors = match self.initial {
            InitLoraWeights::Pissa | InitLoraWeights::Olora if r > outputs.min(inputs) => {
                let expected = "no more than the layer's width with init_lora_weights \"pissa\" or \"olora\"";
                return Err(Error::Adapter {
                    method: "LoRA",
                    field: "r",
                    found: format!("{r} on {path} of {:?}", weight.dims()),
                    expected,
                });
            }
            InitLoraWeights::Pissa => Some(principal_factors(&weight, r, scaling)?),
            InitLoraWeights::Olora => Some(qr(&weight, r)?),
            _ => None,
        };
        let (a, b, weight) = match factors {
            Some((b, a)) => {
                // Worked out on the CPU, wherever the weight is.
                let exact = weight.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
                let residual = (exact - (b.matmul(&a)? * scaling)?)?.to_dtype(weight.dtype())?;
                let (a, b) = (builder.adapter_from(a_path, a)?, builder.adapter_from(b_path, b)?);
                (a, b, residual.to_device(weight.device())?)
            }
            None => {
                let (a, b) = match self.initial {
                    InitLoraWeights::Gaussian => {
                        (Initializer::Normal { standard_deviation: 1.0 / r as f64 }, Initializer::Zeros)
                    }
                    InitLoraWeights::Unset => {
                        (Initializer::KaimingUniform { inputs }, Initializer::KaimingUniform { inputs: r })
                    }
                    _ => (Initializer::KaimingUniform { inputs }, Initializer::Zeros),
                };
                let a = builder.adapter(a_path, &[r, inputs], a)?;
                (a, builder.adapter(b_path, &[outputs, r], b)?, weight)
            }
        };
        let branch = LoraBranch { a, b, scaling, dropout };
        if !self.use_dora {
            return Ok((Box::new(branch), weight));
        }
        // Each pass reads its unrounded numbers.
        let own = ops::to_device(&weight, builder.device)?;
        let norm = branch.adapted_norm(&own)?;
        let magnitude = builder.adapter_from(format!("{path}.lora_magnitude_vector"), norm)?;
        let precision = builder.precision;
        Ok((Box::new(DoraBranch { branch, magnitude, weight: own, precision }), weight))
    }
}

/// PiSSA's B `(out, r)` and A `(r, in)`, in f64.
fn principal_factors(weight: &Tensor, r: usize, scaling: f64) -> Result<(Tensor, Tensor)> {
    let (u, s, v) = svd(weight, r)?; // (out, r), (r), (r, in)
    let root = (s / scaling)?.sqrt()?;
    Ok((u.broadcast_mul(&root.reshape((1, r))?)?, v.broadcast_mul(&root.reshape((r, 1))?)?))
}

/// LoRA's branch beside a linear layer.
struct LoraBranch {
    a: Tensor, // (r, in)
    b: Tensor, // (out, r)
    scaling: f64,
    dropout: f64,
}

impl LoraBranch {
    fn without_dropout(&self) -> Lora<'_> {
        Lora { a: &self.a, b: &self.b, scaling: self.scaling, dropout: None }
    }

    /// `W + scaling B A`, `(out, in)`, without a gradient.
    fn adapted(&self, weight: &Tensor) -> Result<Tensor> {
        Ok((weight + (self.b.detach().matmul(&self.a.detach())? * self.scaling)?)?)
    }

    /// The length of each row of it, `(out)`.
    fn adapted_norm(&self, weight: &Tensor) -> Result<Tensor> {
        Ok(self.adapted(weight)?.sqr()?.sum(1)?.sqrt()?)
    }
}

impl LinearAdapter for LoraBranch {
    /// `x Wᵀ + b + scaling * dropout(x) Aᵀ Bᵀ`.
    fn forward(&self, base: &BaseLayer, x: &Tensor, pass: &ForwardPass) -> Result<Tensor> {
        base.forward_with_branch(x, self.operation(pass))
    }

    fn branch(&self) -> Option<&dyn LowRankBranch> {
        Some(self)
    }

    fn merge(&self, base: BaseLayer) -> Result<BaseLayer> {
        Ok(BaseLayer { weight: base.weight.merge(&self.without_dropout())?, ..base })
    }
}

impl LowRankBranch for LoraBranch {
    fn operation(&self, pass: &ForwardPass) -> Lora<'_> {
        Lora { dropout: pass.dropout(self.dropout), ..self.without_dropout() }
    }
}

/// DoRA's: direction and magnitude.
struct DoraBranch {
    branch: LoraBranch,
    magnitude: Tensor, // (out)
    weight: Tensor,    // (out, in): that of the layer
    precision: Precision,
}

impl LinearAdapter for DoraBranch {
    /// `m / ‖W + scaling B A‖ ∘ x (W + scaling B A)ᵀ + b`. With dropout the base layer keeps its input and what DoRA adds to it
    /// sees the masked one, as in PEFT:
    /// `(x - dropout(x)) Wᵀ + m / ‖W + scaling B A‖ ∘ dropout(x) (W + scaling B A)ᵀ + b`.
    fn forward(&self, base: &BaseLayer, x: &Tensor, pass: &ForwardPass) -> Result<Tensor> {
        let norm = self.branch.adapted_norm(&self.weight)?; // (out)
        let dropout = pass.dropout(self.branch.dropout);
        let input = ops::dropout(x, dropout)?;
        let adapted = ops::lora_linear(&input, &base.weight, None, self.branch.without_dropout())?; // (tokens, out)
        let y = ops::scale_columns(&adapted, &self.magnitude, Some(&norm))?;
        if dropout.is_none() {
            return base.bias.as_ref().map_or(Ok(y.clone()), |bias| Ok(ops::add_bias(&y, bias)?));
        }
        let rest = ops::linear(&ops::sub(x, &input)?, &base.weight, base.bias.as_ref())?;
        Ok(ops::add(&y, &rest)?)
    }

    fn merge(&self, base: BaseLayer) -> Result<BaseLayer> {
        let adapted = self.branch.adapted(&self.weight)?;
        let factor = (self.magnitude.detach() / self.branch.adapted_norm(&self.weight)?)?.unsqueeze(1)?; // (out, 1)
        Ok(BaseLayer { weight: Weight::new(adapted.broadcast_mul(&factor)?, self.precision)?, ..base })
    }
}
