//! Frozen linear layers of one input on a GPU. In bf16 there may be several: what they have in common is one product, or one batch of
//! products.

use candle_core::{DType, Result, Tensor, TensorId};

use super::conversion::aligned;
use super::linear::GpuWeight;
use crate::autograd::{InputGradient, tape};
use crate::cuda::cublaslt::{Factor, Plus, Target};
use crate::cuda::{Array, Buffer, Element, Gpu, with_arrays};
use crate::operations::linear::{LinearLayer, Precision, Weight};

const NAME: &str = "linear_layers";
const PRECISION: Precision = Precision::Bf16;

/// The layers with a branch: the first of them, how many layers lie from one to the next, and how many there are.
#[derive(Clone, Copy)]
struct Places {
    first: usize,
    step: usize,
    count: usize,
}

impl Places {
    /// `None` where the distances differ.
    fn of(layers: &[LinearLayer]) -> Option<Self> {
        let found: Vec<usize> = (0..layers.len()).filter(|&index| layers[index].lora.is_some()).collect();
        let step = if found.len() > 1 { found[1] - found[0] } else { 1 };
        let places = Self { first: found.first().copied().unwrap_or(0), step, count: found.len() };
        found.iter().copied().eq(places.iter()).then_some(places)
    }

    fn iter(self) -> impl Iterator<Item = usize> {
        (0..self.count).map(move |branch| self.first + branch * self.step)
    }

    fn branch(self, layer: usize) -> Option<usize> {
        self.iter().position(|place| place == layer)
    }
}

/// The outputs of layers, `(tokens, out)` each; `None` where they have to be computed one by one.
pub(crate) fn linear_layers(x: &Tensor, layers: &[LinearLayer]) -> Result<Option<Vec<Tensor>>> {
    let Some(places) = shared(x, layers) else { return Ok(None) };
    let weights: Vec<&Weight> = layers.iter().map(|layer| layer.weight).collect();
    let prepared: Vec<&GpuWeight> = weights.iter().map(|weight| weight.prepared().of(NAME)).collect::<Result<_>>()?;
    let precision = prepared[0].precision();
    let Some(factors) = GpuWeight::stack(&weights)? else { return Ok(None) }; // (out, in) each
    let loras: Vec<_> = layers.iter().filter_map(|layer| layer.lora.as_ref()).collect();
    let scaling = loras.first().map_or(1.0, |lora| lora.scaling) as f32;
    let of_branches = loras.iter().flat_map(|lora| [lora.a, lora.b]);
    let inputs: Vec<Tensor> = std::iter::once(x).chain(of_branches).map(Tensor::contiguous).collect::<Result<_>>()?;
    let biases: Vec<Tensor> =
        layers.iter().filter_map(|layer| layer.bias).map(Tensor::contiguous).collect::<Result<_>>()?;
    let all: Vec<&Tensor> = inputs.iter().chain(&factors).chain(&biases).collect();
    let found = with_arrays(&all, NAME, |gpu, arrays| {
        let (inputs, frozen) = arrays.split_at(inputs.len());
        let (weight_arrays, bias_arrays) = frozen.split_at(layers.len());
        let ids = layers.iter().filter_map(|layer| layer.bias).map(Tensor::id);
        let biases: Vec<(TensorId, Array)> = ids.zip(bias_arrays.iter().copied()).collect();
        let weight = weight_arrays[0];
        let plus = match biases.is_empty() {
            true => Plus::Nothing,
            false => match GpuWeight::stack_biases(gpu, &prepared, &biases)? {
                Some(biases) => Plus::Bias(biases),
                None => return Ok(None),
            },
        };
        let (x, (outputs, columns)) = (inputs[0], weight.matrix());
        let (tokens, shape) = (x.matrix().0, [x.matrix().0, outputs]);
        let y = gpu.empty(x.element, layers.len() * tokens * outputs)?; // (layers, tokens, out)
        let product = [x.into(), weight.t().every(outputs * columns)];
        let target = Target::new(y.array(&shape)?).every(tokens * outputs);
        gpu.multiply_batch(precision, 1.0, product, plus, target, layers.len())?;
        let branches = match inputs.len() {
            1 => None,
            _ => {
                let of_first = y.part(places.first * tokens * outputs, &shape)?;
                Some(Branches::forward(gpu, &inputs[1..], [x, of_first], places, scaling)?)
            }
        };
        Ok(Some((y, branches, vec![layers.len(), tokens, outputs])))
    })?;
    let Some((y, branches, shape)) = found else { return Ok(None) };
    let y = y.into_tensor(&shape.into());
    let outputs: Vec<Tensor> = (0..layers.len()).map(|layer| y.get(layer)).collect::<Result<_>>()?;
    let branches = branches.map(|branches| (inputs[0].clone(), branches));
    tape::note(Layers { weights: factors, precision, places, scaling, branches }, &inputs, &outputs, NAME)?;
    Ok(Some(outputs))
}

/// Whether layers can be computed together: the places of their branches. Where there is one only, it has none.
fn shared(x: &Tensor, layers: &[LinearLayer]) -> Option<Places> {
    let first = layers.first().filter(|_| !tape::is_candles())?;
    let is_like_first = |layer: &LinearLayer| {
        let is_frozen =
            layer.weight.prepared().of::<GpuWeight>(NAME).is_ok_and(|weight| weight.is_frozen_for(x.dtype()));
        // A weight may be computed from what is trained.
        is_frozen
            && !tape::is_trained(layer.weight.tensor())
            && layer.weight.tensor().dims() == first.weight.tensor().dims()
            && layer.weight.tensor().dtype() == DType::F32
            && layer.bias.is_some() == first.bias.is_some()
            && layer.bias.is_none_or(|bias| !tape::is_trained(bias) && bias.dtype() == DType::F32)
    };
    let loras: Vec<_> = layers.iter().filter_map(|layer| layer.lora.as_ref()).collect();
    let is_one_kind = loras.iter().all(|lora| {
        let like = loras[0];
        lora.dropout.is_none()
            && lora.scaling == like.scaling
            && lora.a.dims() == like.a.dims()
            && lora.a.dtype() == DType::F32
    });
    // What lies behind or beside another matrix begins as aligned as tensor cores want it.
    let sizes = first.weight.tensor().dims().iter().chain(loras.first().map(|lora| &lora.a.dims()[0]));
    let is_aligned = sizes.copied().all(|size| aligned(size) == size);
    let can_be = match layers.len() {
        1 => loras.is_empty(),
        // No more arrays are rounded at once, and f32 weights are nowhere stacked.
        count => x.dtype() == DType::BF16 && is_aligned && count <= 8 && loras.len() <= 4,
    };
    (can_be && is_one_kind && layers.iter().all(is_like_first)).then(|| Places::of(layers)).flatten()
}

/// What the forward pass leaves of the branches for the backward pass.
struct Branches {
    /// The A of all, `(branches * r, in)`, and the B of all, `(branches, out, r)`, rounded.
    factors: Buffer,
    /// `scaling * x Aᵀ` of all: `(tokens, branches * r)`.
    down: Buffer,
    rank: usize,
    columns: usize,
    outputs: usize,
}

impl Branches {
    /// Adds to the outputs of layers, of which that of the first branch is given, what the branches add. `factors`: A and B of each.
    fn forward(gpu: &Gpu, factors: &[Array], [x, y]: [Array; 2], places: Places, scaling: f32) -> Result<Self> {
        let ((tokens, columns), (_, outputs), (rank, _)) = (x.matrix(), y.matrix(), factors[0].matrix());
        let sorted: Vec<Array> = factors.iter().step_by(2).chain(factors.iter().skip(1).step_by(2)).copied().collect();
        let width = places.count * rank;
        let this = Self {
            factors: gpu.rounded(&sorted, 0)?,
            down: gpu.empty(Element::Bf16, tokens * width)?,
            rank,
            columns,
            outputs,
        };
        let a = [width, columns];
        gpu.multiply(PRECISION, scaling, x.into(), this.factors.array(&a)?.t(), Plus::Nothing, &this.down)?;
        let (thin, b) = ([tokens, rank], [outputs, rank]);
        let down = this.down.array(&thin)?;
        let b = this.factors.part(width * columns, &b)?;
        let product = [Factor::from(down).pitch(width).every(rank), b.t().every(outputs * rank)];
        let target = Target::new(y).every(places.step * tokens * outputs);
        gpu.multiply_batch(PRECISION, 1.0, product, Plus::Output, target, places.count)?;
        Ok(this)
    }

    /// `scaling * g B` of each layer with a branch, beside each other: `(tokens, branches * r)`. `gradients`: of all layers.
    fn down_gradients(&self, gpu: &Gpu, gradients: &[Option<Array>], places: Places, scaling: f32) -> Result<Buffer> {
        let width = places.count * self.rank;
        let (tokens, b) = (self.down.count() / width, [self.outputs, self.rank]);
        let thin = [tokens, self.rank];
        let is_whole = places.iter().all(|layer| gradients[layer].is_some());
        let result = match is_whole {
            true => gpu.empty(Element::Bf16, tokens * width)?,
            false => gpu.zeros(Element::Bf16, tokens * width)?, // Nothing comes from what nothing depends on.
        };
        for (branch, layer) in places.iter().enumerate() {
            let Some(gradient) = gradients[layer] else { continue };
            let b = self.factors.part(width * self.columns + branch * b[0] * b[1], &b)?;
            let target = Target::new(result.part(branch * self.rank, &thin)?).pitch(width);
            gpu.multiply_batch(PRECISION, scaling, [gradient.into(), b.into()], Plus::Nothing, target, 1)?;
        }
        Ok(result)
    }

    /// The gradients of A `(r, in)` and B `(out, r)` of each branch, by turns. `gradients`: of the outputs of its layers.
    fn gradients(
        &self,
        gpu: &Gpu,
        x: Array,
        gradients: &[Option<Array>],
        down_gradients: &Buffer,
        needed: &[bool],
        found: &mut [Option<InputGradient>],
    ) -> Result<()> {
        let (count, tokens) = (gradients.len(), x.matrix().0);
        let (wide, thin) = ([tokens, count * self.rank], [tokens, self.rank]);
        if needed.iter().step_by(2).any(|needed| *needed) {
            let product =
                gpu.product(PRECISION, 1.0, down_gradients.array(&wide)?.t(), x.into(), None, Element::F32)?;
            let of_all = product.into_tensor(&(count, self.rank, self.columns).into());
            for branch in (0..count).filter(|branch| needed[2 * branch]) {
                found[2 * branch] = Some(InputGradient::own(of_all.get(branch)?));
            }
        }
        for (branch, gradient) in gradients.iter().enumerate() {
            let (Some(gradient), true) = (gradient, needed[2 * branch + 1]) else { continue };
            let down = Factor::from(self.down.part(branch * self.rank, &thin)?).pitch(wide[1]);
            let product = gpu.product(PRECISION, 1.0, gradient.t(), down, None, Element::F32)?;
            found[2 * branch + 1] = Some(InputGradient::own(product.into_tensor(&(self.outputs, self.rank).into())));
        }
        Ok(())
    }
}

/// Layers that were applied. Their input is kept for branches only: the gradient of an input of a frozen layer depends on none.
struct Layers {
    /// As products take them, `(out, in)` each.
    weights: Vec<Tensor>,
    precision: Precision,
    places: Places,
    scaling: f32,
    branches: Option<(Tensor, Branches)>,
}

impl tape::Backward for Layers {
    fn reaches(&self, needed: &[bool], output: usize) -> bool {
        let branch = self.places.branch(output).map_or(0, |branch| 1 + 2 * branch);
        needed[0] || branch > 0 && needed[branch..branch + 2].contains(&true)
    }

    fn backward(&self, pass: tape::Pass) -> Result<Vec<Option<InputGradient>>> {
        let gradients: Vec<Option<Tensor>> = pass
            .gradients
            .iter()
            .map(|gradient| gradient.as_ref().map(Tensor::contiguous).transpose())
            .collect::<Result<_>>()?;
        let earlier = pass.earlier.first().and_then(Option::as_ref);
        let x = self.branches.as_ref().map(|(x, _)| x);
        let all: Vec<&Tensor> = self.weights.iter().chain(gradients.iter().flatten()).chain(x).chain(earlier).collect();
        with_arrays(&all, NAME, |gpu, arrays| {
            let (weights, others) = arrays.split_at(self.weights.len());
            let mut others = others.iter().copied();
            let gradients: Vec<_> =
                gradients.iter().map(|gradient| gradient.as_ref().and_then(|_| others.next())).collect();
            let branches = match &self.branches {
                Some((_, branches)) => {
                    let down_gradients = branches.down_gradients(gpu, &gradients, self.places, self.scaling)?;
                    others.next().map(|x| (x, branches, down_gradients))
                }
                None => None,
            };
            let mut found = vec![None; pass.needed.len()];
            if pass.needed[0] {
                let branches = branches.as_ref().map(|(_, branches, down_gradients)| (*branches, down_gradients));
                found[0] = Some(self.input_gradient(gpu, weights, &gradients, branches, others.next())?);
            }
            if let Some((x, branches, down_gradients)) = &branches {
                let upstream: Vec<_> = self.places.iter().map(|layer| gradients[layer]).collect();
                branches.gradients(gpu, *x, &upstream, down_gradients, &pass.needed[1..], &mut found[1..])?;
            }
            Ok(found)
        })
    }
}

impl Layers {
    /// The sum over layers of `g W`, of `scaling * g B A` over those with a branch, and of what was found before: `(tokens, in)`.
    fn input_gradient(
        &self,
        gpu: &Gpu,
        weights: &[Array],
        gradients: &[Option<Array>],
        branches: Option<(&Branches, &Buffer)>,
        earlier: Option<Array>,
    ) -> Result<InputGradient> {
        let columns = weights[0].matrix().1;
        let of_any = gradients.iter().flatten().next();
        let (tokens, element) = of_any.map_or((0, Element::F32), |gradient| (gradient.matrix().0, gradient.element));
        let dx = gpu.empty(element, tokens * columns)?;
        let mut plus = earlier.filter(|earlier| earlier.element == element).map_or(Plus::Nothing, Plus::Matrix);
        let is_sum = matches!(plus, Plus::Matrix(_));
        for (weight, gradient) in weights.iter().zip(gradients) {
            let Some(gradient) = *gradient else { continue };
            gpu.multiply(self.precision, 1.0, gradient.into(), (*weight).into(), plus, &dx)?;
            plus = Plus::Output;
        }
        if let Some((branches, down_gradients)) = branches {
            let width = self.places.count * branches.rank;
            let (wide, a) = ([tokens, width], [width, columns]);
            let (down_gradients, a) = (down_gradients.array(&wide)?, branches.factors.array(&a)?);
            gpu.multiply(PRECISION, 1.0, down_gradients.into(), a.into(), Plus::Output, &dx)?;
        }
        Ok(InputGradient { tensor: dx.into_tensor(&(tokens, columns).into()), is_sum })
    }
}
