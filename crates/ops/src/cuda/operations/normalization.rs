//! Layer normalization on a GPU, alone and of a sum with a residual.

use candle_core::Result;

use super::conversion::Converted;
use crate::autograd::Output;
use crate::cuda::{Array, Buffer, Element, Gpu, GpuBackward, GpuGradient, GpuOperation, Grid, Kernel};
use crate::operations::dropout::Dropout;
use crate::operations::normalization::{AddNorm, LayerNorm};

/// What is normed: x, or `dropout(x) + residual`, `(tokens, hidden)`.
struct Rows<'a> {
    x: Array<'a>,
    residual: Option<Converted<'a>>,
    dropout: Option<Dropout>,
    epsilon: f64,
}

/// The kernels of normalization.cu for rows that registers have room for, of up to so many numbers; the first is for all others.
const WIDTHS: [usize; 5] = [0, 256, 512, 768, 1024];
type ByWidth = [&'static str; 5];
const FORWARD: ByWidth = ["layer_norm_0", "layer_norm_256", "layer_norm_512", "layer_norm_768", "layer_norm_1024"];
const BACKWARD: ByWidth = [
    "layer_norm_backward_0",
    "layer_norm_backward_256",
    "layer_norm_backward_512",
    "layer_norm_backward_768",
    "layer_norm_backward_1024",
];
const NORMALIZE: ByWidth =
    ["normalize_rows_0", "normalize_rows_256", "normalize_rows_512", "normalize_rows_768", "normalize_rows_1024"];
/// What these kernels read and write at once, and so where rows must begin.
const PACK_BYTES: usize = 16;

impl Rows<'_> {
    fn residual(&self) -> Result<Option<Array<'_>>> {
        self.residual.as_ref().map(Converted::array).transpose()
    }

    /// The one of these kernels for rows of this width, all of which begin in an array at one of these addresses or in these rows.
    fn kernel<'k>(&self, kernels: ByWidth, addresses: &[u64]) -> Result<Kernel<'k>> {
        let (_, columns) = self.x.matrix();
        let residual = self.residual()?.map(|residual| residual.pointer);
        let is_aligned = (columns * self.x.element.bytes()).is_multiple_of(PACK_BYTES)
            && addresses
                .iter()
                .chain([&self.x.pointer])
                .chain(&residual)
                .all(|address| address.is_multiple_of(PACK_BYTES as u64));
        let width = WIDTHS.iter().position(|&width| is_aligned && columns <= width).unwrap_or(0);
        Ok(Kernel::of(kernels[width], self.x.element))
    }

    /// Launches a kernel on these rows, after the arguments that come first.
    ///
    /// # Safety
    /// As [`Kernel::launch`], for a kernel of normalization.cu whose other arguments are ROWS_PARAMETERS.
    unsafe fn launch(&self, gpu: &Gpu, kernel: Kernel) -> Result<()> {
        let ((rows, columns), n) = (self.x.matrix(), self.x.count());
        let kernel = kernel.read(self.x, n).read_if(self.residual()?, n).counts([rows, columns]);
        // SAFETY: as the caller promises.
        unsafe { kernel.float(self.epsilon as f32).dropout(self.dropout).launch(gpu, Grid::rows(rows)) }
    }

    fn forward(&self, gpu: &Gpu, gamma: Array, beta: Array) -> Result<Output<Buffer>> {
        let (n, (_, columns)) = (self.x.count(), self.x.matrix());
        let y = gpu.empty(self.x.element, n)?;
        let kernel = self.kernel(FORWARD, &[y.pointer(), gamma.pointer, beta.pointer])?.write(&y, n);
        // SAFETY: y as x, gamma and beta a number for each column.
        unsafe { self.launch(gpu, kernel.read_f32(gamma, columns).read_f32(beta, columns)) }?;
        Ok(Output::new(y, self.x.shape.to_vec()))
    }

    /// The gradient of the rows; `masked`: and what of it reaches x.
    fn gradients(&self, gpu: &Gpu, gamma: Array, gradient: Array, masked: bool) -> Result<(Buffer, Option<Buffer>)> {
        let (n, (_, columns)) = (self.x.count(), self.x.matrix());
        let of_rows = gpu.empty(self.x.element, n)?;
        let masked = masked.then(|| gpu.empty(self.x.element, n)).transpose()?;
        let to_masked = masked.as_ref().map_or(0, Buffer::pointer);
        let addresses = [of_rows.pointer(), to_masked, gamma.pointer, gradient.pointer];
        let kernel = self.kernel(BACKWARD, &addresses)?.write(&of_rows, n);
        let kernel = match &masked {
            Some(masked) => kernel.write(masked, n),
            None => kernel.nothing(),
        };
        // SAFETY: the gradients as x, gamma a number for each column.
        unsafe { self.launch(gpu, kernel.read_f32(gamma, columns).read(gradient, n)) }?;
        Ok((of_rows, masked))
    }

    /// The gradients of gamma and beta, `(hidden)`.
    fn vector_gradients(&self, gpu: &Gpu, gradient: Array, needed: &[bool]) -> Result<Vec<GpuGradient>> {
        let mut gradients = vec![GpuGradient::None, GpuGradient::None];
        if needed[0] {
            let normalized = gpu.empty(Element::F32, self.x.count())?;
            let kernel = self.kernel(NORMALIZE, &[normalized.pointer()])?;
            let kernel = kernel.write_f32(&normalized, self.x.count());
            // SAFETY: the result has as many numbers as x.
            unsafe { self.launch(gpu, kernel) }?;
            let gradient = gpu.convert(gradient, Element::F32)?;
            let sums = gpu.column_products(gradient.array()?, normalized.array(self.x.shape)?)?;
            gradients[0] = GpuGradient::Values(sums);
        }
        if needed[1] {
            gradients[1] = GpuGradient::Values(gpu.column_sums(gradient)?);
        }
        Ok(gradients)
    }
}

impl LayerNorm {
    fn rows<'a>(&self, x: Array<'a>) -> Rows<'a> {
        Rows { x, residual: None, dropout: None, epsilon: self.epsilon }
    }
}

impl GpuOperation for LayerNorm {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        self.rows(inputs[0]).forward(gpu, inputs[1], inputs[2])
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let GpuBackward { inputs, needed, gradient, .. } = pass;
        let rows = self.rows(inputs[0]);
        let mut gradients = vec![match needed[0] {
            true => GpuGradient::Values(rows.gradients(gpu, inputs[1], gradient, false)?.0),
            false => GpuGradient::None,
        }];
        gradients.extend(rows.vector_gradients(gpu, gradient, &needed[1..])?);
        Ok(gradients)
    }
}

impl AddNorm {
    fn rows<'a>(&self, gpu: &Gpu, residual: Array<'a>, x: Array<'a>) -> Result<Rows<'a>> {
        let residual = Some(gpu.convert(residual, x.element)?);
        Ok(Rows { x, residual, dropout: self.dropout, epsilon: self.epsilon })
    }
}

impl GpuOperation for AddNorm {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        self.rows(gpu, inputs[0], inputs[1])?.forward(gpu, inputs[2], inputs[3])
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let GpuBackward { inputs, needed, gradient, .. } = pass;
        let rows = self.rows(gpu, inputs[0], inputs[1])?;
        let mut gradients = vec![GpuGradient::None, GpuGradient::None];
        if needed[0] || needed[1] {
            // Without a mask both have the same, if they are of one type.
            let is_same = self.dropout.is_none() && needed[0] && inputs[0].element == inputs[1].element;
            let (of_sums, masked) = rows.gradients(gpu, inputs[2], gradient, needed[1] && !is_same)?;
            gradients[1] = match masked {
                Some(masked) => GpuGradient::Values(masked),
                None if needed[1] => GpuGradient::Same(0),
                None => GpuGradient::None,
            };
            if needed[0] {
                gradients[0] = gpu.of_type(of_sums, inputs[0])?;
            }
        }
        gradients.extend(rows.vector_gradients(gpu, gradient, &needed[2..])?);
        Ok(gradients)
    }
}
