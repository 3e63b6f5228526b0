//! Element by element: conversion, dropout, residuals, activation functions, gates.

use candle_core::Result;

use super::gpu::Grid;
use super::{Argument, Array, Buffer, Element, Gpu, GpuGradient, GpuOperation};
use crate::activation::Activation;
use crate::conversion::Conversion;
use crate::dropout::{AddDropout, Dropout, Mask};
use crate::gate::Gate;

/// An array in another type of numbers: itself, or a copy.
pub(crate) enum Converted<'a> {
    Same(Array<'a>),
    Copy(Buffer, &'a [usize]),
}

impl Converted<'_> {
    pub fn array(&self) -> Result<Array<'_>> {
        match self {
            Self::Same(array) => Ok(*array),
            Self::Copy(buffer, shape) => buffer.array(shape),
        }
    }
}

/// Dropout as kernels take it; without any, nothing is dropped.
pub(super) fn dropout_arguments(dropout: Option<Dropout>) -> [Argument; 3] {
    let (dropped_below, scale, seed) = dropout.map_or((0, 1.0, 0), |dropout| dropout.parts());
    [Argument::Count(dropped_below), Argument::Float(scale as f32), Argument::Seed(seed)]
}

impl Gpu {
    /// The same numbers as another type.
    pub fn convert<'a>(&self, x: Array<'a>, element: Element) -> Result<Converted<'a>> {
        if x.element == element {
            return Ok(Converted::Same(x));
        }
        let y = self.empty(element, x.count())?;
        self.convert_into(x, &y)?;
        Ok(Converted::Copy(y, x.shape))
    }

    /// The same numbers in memory for as many of the other type.
    pub fn convert_into(&self, x: Array, y: &Buffer) -> Result<()> {
        let kernel = match x.element {
            Element::F32 => "to_bf16",
            Element::Bf16 => "to_f32",
        };
        self.launch(kernel, Grid::fours(x.count()), &[y.array(x.shape)?.into(), x.into(), x.count().into()])
    }

    /// The gradient of an input, in that one's type.
    pub fn of_type(&self, values: Buffer, input: Array) -> Result<GpuGradient> {
        Ok(GpuGradient::Values(match self.convert(values.array(input.shape)?, input.element)? {
            Converted::Copy(converted, _) => converted,
            Converted::Same(_) => values,
        }))
    }

    /// A kernel from inputs of one size and type to an output of the same, with more arguments behind the count.
    fn pointwise(&self, kernel: &str, inputs: &[Array], more: &[Argument]) -> Result<Buffer> {
        let (element, count) = (inputs[0].element, inputs[0].count());
        let y = self.empty(element, count)?;
        let mut arguments = vec![Argument::from(y.array(inputs[0].shape)?)];
        arguments.extend(inputs.iter().map(|&input| Argument::from(input)));
        arguments.push(count.into());
        arguments.extend(more);
        self.launch(&element.kernel(kernel), Grid::fours(count), &arguments)?;
        Ok(y)
    }

    /// `mask * x`.
    pub fn masked(&self, x: Array, dropout: Dropout) -> Result<Buffer> {
        self.pointwise("dropout", &[x], &dropout_arguments(Some(dropout)))
    }

    /// `mask * x + others`.
    pub fn add_masked(&self, x: Array, others: Array, dropout: Option<Dropout>) -> Result<Buffer> {
        let others = self.convert(others, x.element)?;
        self.pointwise("add_dropout", &[x, others.array()?], &dropout_arguments(dropout))
    }
}

impl GpuOperation for Mask {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        Ok((gpu.masked(inputs[0], self.0)?, inputs[0].shape.to_vec()))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        _inputs: &[Array],
        _needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        Ok(vec![GpuGradient::Values(gpu.masked(gradient, self.0)?)])
    }
}

impl GpuOperation for Conversion {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        let element = match inputs[0].element {
            Element::F32 => Element::Bf16,
            Element::Bf16 => Element::F32,
        };
        let y = gpu.empty(element, inputs[0].count())?;
        gpu.convert_into(inputs[0], &y)?;
        Ok((y, inputs[0].shape.to_vec()))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        _needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let dx = gpu.empty(inputs[0].element, inputs[0].count())?;
        gpu.convert_into(gradient, &dx)?;
        Ok(vec![GpuGradient::Values(dx)])
    }
}

impl GpuOperation for AddDropout {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        Ok((gpu.add_masked(inputs[0], inputs[1], self.0)?, inputs[0].shape.to_vec()))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        _inputs: &[Array],
        needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let x = match self.0 {
            _ if !needed[0] => GpuGradient::None,
            Some(dropout) => GpuGradient::Values(gpu.masked(gradient, dropout)?),
            None => GpuGradient::Upstream,
        };
        Ok(vec![x, if needed[1] { GpuGradient::Upstream } else { GpuGradient::None }])
    }
}

impl Activation {
    /// Its number in `pointwise.cu`.
    fn function(self) -> Argument {
        Argument::Count(match self {
            Self::Gelu => 0,
            Self::GeluApproximate => 1,
            Self::Relu => 2,
            Self::Tanh => 3,
            Self::Swish => 4,
        })
    }
}

impl GpuOperation for Activation {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        Ok((gpu.pointwise("activation", inputs, &[self.function()])?, inputs[0].shape.to_vec()))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        _needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let values = gpu.pointwise("activation_backward", &[inputs[0], gradient], &[self.function()])?;
        Ok(vec![GpuGradient::Values(values)])
    }
}

impl Gpu {
    /// `a * b`, in the type of a.
    fn times(&self, a: Array, b: Array) -> Result<Buffer> {
        let b = self.convert(b, a.element)?;
        self.pointwise("gate", &[a, b.array()?], &[])
    }
}

impl GpuOperation for Gate {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        Ok((gpu.times(inputs[0], inputs[1])?, inputs[0].shape.to_vec()))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let of = |index: usize, other: Array| match needed[index] {
            true => gpu.of_type(gpu.times(gradient, other)?, inputs[index]),
            false => Ok(GpuGradient::None),
        };
        Ok(vec![of(0, inputs[1])?, of(1, inputs[0])?])
    }
}
