//! Linear layers on a GPU: plain, and with a LoRA branch.

use std::sync::OnceLock;

use candle_core::Result;

use super::conversion::Converted;
use crate::autograd::{Operation, Output};
use crate::cuda::cublaslt::Plus;
use crate::cuda::{Array, Buffer, Element, Gpu, GpuBackward, GpuGradient, GpuOperation, with_arrays};
use crate::operations::linear::lora::LoraLinear;
use crate::operations::linear::{Linear, Precision};

/// How a weight is multiplied on a GPU.
#[derive(Debug)]
pub(crate) struct GpuWeight {
    element: Element,
    precision: Precision,
    is_frozen: bool,
    /// A frozen weight, rounded once: `(out, in)`.
    rounded: OnceLock<Buffer>,
}

impl GpuWeight {
    pub(crate) fn new(precision: Precision, is_frozen: bool) -> Self {
        let element = match precision {
            Precision::F32 | Precision::Tf32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
        };
        Self { element, precision, is_frozen, rounded: OnceLock::new() }
    }

    /// The weight as its products take it.
    fn factor<'a>(&'a self, gpu: &Gpu, weight: Array<'a>) -> Result<Converted<'a>> {
        if let Some(rounded) = self.rounded.get() {
            return Ok(Converted::Same(rounded.array(weight.shape)?));
        }
        match gpu.convert(weight, self.element)? {
            Converted::Copy(rounded, shape) if self.is_frozen => {
                Ok(Converted::Same(self.rounded.get_or_init(|| rounded).array(shape)?))
            }
            converted => Ok(converted),
        }
    }

    /// `x Wᵀ + b` with what is to be added, in the type of x: `(tokens, out)`.
    fn forward(&self, gpu: &Gpu, x: Array, weight: Array, bias: Option<Array>) -> Result<Buffer> {
        let (factor, weight) = (gpu.convert(x, self.element)?, self.factor(gpu, weight)?);
        gpu.product(self.precision, 1.0, factor.array()?.into(), weight.array()?.t(), bias, x.element)
    }

    /// `g W`, in the type of g: `(tokens, in)`.
    fn backward(&self, gpu: &Gpu, gradient: Array, weight: Array) -> Result<Buffer> {
        let (factor, weight) = (gpu.convert(gradient, self.element)?, self.factor(gpu, weight)?);
        gpu.product(self.precision, 1.0, factor.array()?.into(), weight.array()?.into(), None, gradient.element)
    }
}

impl GpuOperation for Linear {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        let ((tokens, _), (outputs, _)) = (inputs[0].matrix(), inputs[1].matrix());
        let weight: &GpuWeight = self.weight.of(Self::NAME)?;
        let y = weight.forward(gpu, inputs[0], inputs[1], inputs.get(2).copied())?;
        Ok(Output::new(y, vec![tokens, outputs]))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let GpuBackward { inputs, needed, gradient, .. } = pass;
        let weight: &GpuWeight = self.weight.of(Self::NAME)?;
        let mut gradients = vec![if needed[0] {
            GpuGradient::Values(weight.backward(gpu, gradient, inputs[1])?) // (tokens, in)
        } else {
            GpuGradient::None
        }];
        gradients.push(if needed[1] {
            let (upstream, x) = (gpu.convert(gradient, weight.element)?, gpu.convert(inputs[0], weight.element)?);
            let product =
                gpu.product(weight.precision, 1.0, upstream.array()?.t(), x.array()?.into(), None, Element::F32)?;
            GpuGradient::Values(product) // (out, in)
        } else {
            GpuGradient::None
        });
        if inputs.len() > 2 {
            gradients.push(match needed[2] {
                true => GpuGradient::Values(gpu.column_sums(gradient)?), // (out)
                false => GpuGradient::None,
            });
        }
        Ok(gradients)
    }
}

impl LoraLinear {
    /// With the frozen weight and bias.
    fn with_frozen<R>(&self, run: impl FnOnce(&Gpu, &GpuWeight, Array, Option<Array>) -> Result<R>) -> Result<R> {
        let products = self.prepared.of(Self::NAME)?;
        let frozen: Vec<_> = std::iter::once(&self.weight).chain(&self.bias).collect();
        with_arrays(&frozen, Self::NAME, |gpu, frozen| run(gpu, products, frozen[0], frozen.get(1).copied()))
    }

    /// The branch's input: x itself, or a masked copy.
    fn gpu_input<'a>(&self, gpu: &Gpu, x: Array<'a>) -> Result<Converted<'a>> {
        Ok(match self.dropout {
            Some(dropout) => Converted::Copy(gpu.masked(x, dropout)?, x.shape),
            None => Converted::Same(x),
        })
    }
}

impl GpuOperation for LoraLinear {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        let [x, a, b] = [inputs[0], inputs[1], inputs[2]];
        let ((tokens, _), (rank, _), (outputs, _)) = (x.matrix(), a.matrix(), b.matrix());
        let (a, b) = (gpu.convert(a, x.element)?, gpu.convert(b, x.element)?);
        let input = self.gpu_input(gpu, x)?;
        let (precision, scaling) = (self.prepared.of::<GpuWeight>(Self::NAME)?.precision, self.scaling as f32);
        let down = gpu.product(precision, scaling, input.array()?.into(), a.array()?.t(), None, x.element)?; // (tokens, r)
        let y = self.with_frozen(|gpu, products, weight, bias| products.forward(gpu, x, weight, bias))?;
        gpu.multiply(precision, 1.0, down.array(&[tokens, rank])?.into(), b.array()?.t(), Plus::Output, &y)?; // (tokens, out)
        Ok(Output::new(y, vec![tokens, outputs]).saving(down))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let &GpuBackward { inputs, needed, gradient, .. } = &pass;
        let [x, a, b] = [inputs[0], inputs[1], inputs[2]];
        let ((tokens, columns), (rank, _)) = (x.matrix(), a.matrix());
        let (a, b) = (gpu.convert(a, x.element)?, gpu.convert(b, x.element)?);
        let (precision, scaling) = (self.prepared.of::<GpuWeight>(Self::NAME)?.precision, self.scaling as f32);
        let thin = [tokens, rank];
        let down_gradient = gpu.product(precision, scaling, gradient.into(), b.array()?.into(), None, x.element)?; // scaling * g B
        let down_gradient = down_gradient.array(&thin)?; // (tokens, r)
        let mut gradients = [GpuGradient::None, GpuGradient::None, GpuGradient::None];
        if needed[0] {
            let dx = self.with_frozen(|gpu, products, weight, _| products.backward(gpu, gradient, weight))?;
            gradients[0] = GpuGradient::Values(match self.dropout {
                None => {
                    gpu.multiply(precision, 1.0, down_gradient.into(), a.array()?.into(), Plus::Output, &dx)?;
                    dx
                }
                Some(dropout) => {
                    let shape = [tokens, columns];
                    let branch =
                        gpu.product(precision, 1.0, down_gradient.into(), a.array()?.into(), None, x.element)?;
                    gpu.add_masked(branch.array(&shape)?, dx.array(&shape)?, dropout)?
                }
            }); // (tokens, in)
        }
        if needed[1] {
            let input = self.gpu_input(gpu, x)?;
            let product = gpu.product(precision, 1.0, down_gradient.t(), input.array()?.into(), None, Element::F32)?;
            gradients[1] = GpuGradient::Values(product); // (r, in)
        }
        if needed[2] {
            let down = pass.saved()?.array(&thin)?;
            let product = gpu.product(precision, 1.0, gradient.t(), down.into(), None, Element::F32)?;
            gradients[2] = GpuGradient::Values(product); // (out, r)
        }
        Ok(gradients.into())
    }
}
