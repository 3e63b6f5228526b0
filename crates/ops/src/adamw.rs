//! AdamW as one pass over each parameter.

use std::any::Any;
use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, Var, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use crate::backend;
use crate::cpu::float::Float;
use crate::cpu::with_views;

/// The numbers of one step of [`adamw_step`].
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    /// The learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// What the gradient is multiplied by first: below 1 when gradients are clipped.
    pub gradient_scale: f64,
    /// How many steps have been taken, this one included; 1 at the first.
    pub step: usize,
}

/// The running means of a parameter's gradient and of its square, as long as the parameter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// Of the gradient.
    pub first: Vec<f32>,
    /// Of its square.
    pub second: Vec<f32>,
}

impl Moments {
    /// Zeros for a parameter of `count` numbers.
    pub fn zeros(count: usize) -> Self {
        Self { first: vec![0.0; count], second: vec![0.0; count] }
    }
}

/// One step of AdamW (Loshchilov and Hutter 2019, algorithm 2, in the form of torch's `AdamW`): decay, then
/// `p -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + epsilon)`. Parameter and gradient are f32 of one shape.
///
/// # Errors
/// When parameter, gradient and moments differ in size, or are not f32 on the CPU.
pub fn adamw_step(parameter: &Var, gradient: &Tensor, moments: &mut Moments, step: AdamWStep) -> Result<()> {
    let count = parameter.elem_count();
    if gradient.dims() != parameter.dims() || moments.first.len() != count || moments.second.len() != count {
        let kept = moments.first.len();
        bail!("adamw: parameter {:?}, gradient {:?}, {kept} moments", parameter.dims(), gradient.dims())
    }
    parameter.inplace_op2(&gradient.contiguous()?, &Update { moments: Mutex::new(moments), step })
}

struct Update<'a> {
    moments: Mutex<&'a mut Moments>,
    step: AdamWStep,
}

/// Elements are handed to threads in pieces of this many.
const PIECE: usize = 1 << 14;

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn update(parameter: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32], step: &AdamWStep) {
    let (beta1, beta2) = (step.beta1 as f32, step.beta2 as f32);
    let keep = (1.0 - step.learning_rate * step.weight_decay) as f32;
    let rate = (step.learning_rate / (1.0 - step.beta1.powi(step.step as i32))) as f32;
    let correction = (1.0 / (1.0 - step.beta2.powi(step.step as i32)).sqrt()) as f32;
    let (scale, epsilon) = (step.gradient_scale as f32, step.epsilon as f32);
    for (((p, &g), m), v) in parameter.iter_mut().zip(gradient).zip(first).zip(second) {
        let g = g * scale;
        *m = beta1 * *m + (1.0 - beta1) * g;
        *v = beta2 * *v + (1.0 - beta2) * g * g;
        *p = *p * keep - rate * *m / (v.sqrt() * correction + epsilon);
    }
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, parameter: &mut CpuStorage, l1: &Layout, gradient: &CpuStorage, l2: &Layout) -> Result<()> {
        let (CpuStorage::F32(parameter), CpuStorage::F32(gradient)) = (parameter, gradient) else {
            bail!("adamw: expected an f32 parameter and an f32 gradient")
        };
        let (Some(p), Some(g)) = (l1.contiguous_offsets(), l2.contiguous_offsets()) else {
            bail!("adamw: expected contiguous tensors")
        };
        let Ok(mut moments) = self.moments.lock() else { bail!("adamw: a thread that held the moments panicked") };
        let Moments { first, second } = &mut **moments;
        parameter[p.0..p.1]
            .par_chunks_mut(PIECE)
            .zip(gradient[g.0..g.1].par_chunks(PIECE))
            .zip(first.par_chunks_mut(PIECE).zip(second.par_chunks_mut(PIECE)))
            .for_each(|((p, g), (m, v))| update(p, g, m, v, &self.step));
        Ok(())
    }
}

/// The sum of squares in f64, in eight running sums.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn squares<T: Float>(values: &[T]) -> f64 {
    let square = |x: T| candle_core::WithDType::to_f64(x).powi(2);
    let mut sums = [0.0; 8];
    let (pieces, rest) = values.as_chunks::<8>();
    for piece in pieces {
        sums.iter_mut().zip(piece).for_each(|(sum, &x)| *sum += square(x));
    }
    sums.into_iter().chain(rest.iter().map(|&x| square(x))).sum()
}

/// The sum of the squares of a tensor's elements, added up in f64 and in an order that no number of threads changes.
pub fn squared_norm(tensor: &Tensor) -> Result<f64> {
    fn sum<T: Float>(tensor: &Tensor) -> Result<f64> {
        with_views::<T, _>(&[tensor], "squared_norm", |views| {
            let pieces: Vec<f64> = views[0].data.par_chunks(PIECE).map(squares).collect();
            Ok(pieces.into_iter().sum())
        })
    }
    let tensor = tensor.contiguous()?;
    match tensor.dtype() {
        candle_core::DType::F64 => sum::<f64>(&tensor),
        _ => sum::<f32>(&tensor),
    }
}

/// The running means of a parameter's gradient, on the parameter's device.
#[derive(Debug)]
pub struct ParameterMoments(Box<dyn DeviceMoments>);

/// Moments in a device's memory.
pub(crate) trait DeviceMoments: Any + Debug + Send + Sync {
    /// Their numbers: themselves, or a copy.
    fn read(&self) -> Result<Cow<'_, Moments>>;
}

impl DeviceMoments for Moments {
    fn read(&self) -> Result<Cow<'_, Moments>> {
        Ok(Cow::Borrowed(self))
    }
}

impl ParameterMoments {
    /// Those that are zero.
    ///
    /// # Errors
    /// When the device's memory does not suffice.
    pub fn zeros(parameter: &Tensor) -> Result<Self> {
        backend::moments(parameter, None)
    }

    /// Those that [`ParameterMoments::read`] gave.
    ///
    /// # Errors
    /// When the device's memory does not suffice.
    pub fn new(parameter: &Tensor, moments: Moments) -> Result<Self> {
        backend::moments(parameter, Some(moments))
    }

    pub(crate) fn on(moments: impl DeviceMoments) -> Self {
        Self(Box::new(moments))
    }

    /// Their numbers: themselves, or of a GPU's a copy.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read(&self) -> Result<Cow<'_, Moments>> {
        self.0.read()
    }

    /// As the device of `M` has them.
    pub(crate) fn of<M: DeviceMoments>(&mut self) -> Result<&mut M> {
        let moments: &mut dyn Any = &mut *self.0;
        match moments.downcast_mut() {
            Some(moments) => Ok(moments),
            None => bail!("adamw: the moments lie on another device than the loss"),
        }
    }
}

/// A parameter in a step of [`adamw`].
pub struct AdamWSlot<'a> {
    /// The parameter, in f32.
    pub parameter: &'a Var,
    /// Its gradient, of the same shape.
    pub gradient: &'a Tensor,
    /// Its running means.
    pub moments: &'a mut ParameterMoments,
    /// Its learning rate.
    pub learning_rate: f64,
    /// Its decoupled weight decay.
    pub weight_decay: f64,
}

/// What all parameters share in a step of [`adamw`]: [`AdamWStep`] has the same numbers.
#[derive(Clone, Copy, Debug)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// The norm that all gradients together are clipped to; `None`: not clipped.
    pub max_norm: Option<f64>,
    /// How many steps have been taken, this one included; 1 at the first.
    pub step: usize,
}

/// What gradients were multiplied by, so that their norm is within a limit: a number on the device of the loss.
pub struct ClipFactor(Tensor);

impl ClipFactor {
    /// A scalar in f64.
    pub(crate) fn new(factor: Tensor) -> Self {
        Self(factor)
    }

    /// The number. On a GPU, that is to wait for it.
    ///
    /// # Errors
    /// Those of the device.
    pub fn value(&self) -> Result<f64> {
        self.0.to_scalar()
    }
}

/// A step of [`adamw_step`] on every parameter, of one device, after their gradients together have been clipped to the norm
/// `max_norm` as by torch's `clip_grad_norm_`; none where the loss, a scalar in f32, is not finite.
///
/// On a GPU this is three launches whatever the number of parameters, and nobody waits for them.
///
/// # Errors
/// As [`adamw_step`].
pub fn adamw(slots: &mut [AdamWSlot], loss: &Tensor, settings: AdamWSettings) -> Result<ClipFactor> {
    backend::adamw(slots, loss, settings)
}

/// See [`adamw()`].
pub(crate) fn on_cpu(slots: &mut [AdamWSlot], loss: &Tensor, settings: AdamWSettings) -> Result<ClipFactor> {
    let AdamWSettings { beta1, beta2, epsilon, max_norm, step } = settings;
    let gradient_scale = match max_norm {
        Some(limit) => {
            let mut squares = 0.0;
            for slot in slots.iter() {
                squares += squared_norm(slot.gradient)?;
            }
            (limit / (squares.sqrt() + 1e-6)).min(1.0)
        }
        None => 1.0,
    };
    if loss.to_scalar::<f32>()?.is_finite() {
        for AdamWSlot { parameter, gradient, moments, learning_rate, weight_decay } in slots {
            let (learning_rate, weight_decay) = (*learning_rate, *weight_decay);
            let settings = AdamWStep { learning_rate, beta1, beta2, epsilon, weight_decay, gradient_scale, step };
            adamw_step(parameter, gradient, moments.of()?, settings)?;
        }
    }
    Ok(ClipFactor::new(Tensor::new(gradient_scale, loss.device())?))
}
