//! The product with a block-diagonal matrix.

use candle_core::{Result, Tensor, bail};

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;
use crate::cpu::products::gemm::{Cores, Into, Matrix, multiply};

/// `x B`, `(rows, columns)`, of x `(rows, columns)` and the block-diagonal B with these blocks, `(columns / n, n, n)`, or with this one
/// again and again, `(1, n, n)`.
///
/// # Errors
/// When the shapes do not fit.
pub fn block_product(x: &Tensor, blocks: &Tensor) -> Result<Tensor> {
    let ((_, columns), (count, rows, size)) = (x.dims2()?, blocks.dims3()?);
    if rows != size || size == 0 || columns % size != 0 || (count != 1 && count * size != columns) {
        bail!("block_product: {:?} and {:?} do not fit", x.dims(), blocks.dims())
    }
    apply(BlockProduct { size }, &[x, blocks])
}

struct BlockProduct {
    size: usize,
}

impl BlockProduct {
    /// The columns of a matrix that a block meets.
    fn columns<'a, T>(&self, view: &View<'a, T>, block: usize) -> Matrix<'a, T> {
        let (rows, columns) = view.matrix();
        let data = view.data.get(block * self.size..).unwrap_or_default();
        Matrix::strided(data, rows, self.size, columns)
    }

    /// The blocks in their order; one that is shared, as often as it is met.
    fn blocks<'a, T>(&self, view: &View<'a, T>, columns: usize) -> impl Iterator<Item = Matrix<'a, T>> {
        let blocks = view.data.chunks_exact(self.size * self.size);
        let blocks = blocks.map(|block| Matrix::new(block, self.size, self.size));
        blocks.cycle().take(columns / self.size)
    }

    /// x times these blocks.
    fn product<'a, T: Float>(&self, x: &View<T>, blocks: impl Iterator<Item = Matrix<'a, T>>) -> Vec<T> {
        let mut product = vec![T::zero(); x.data.len()];
        for (index, block) in blocks.enumerate() {
            let output = product.get_mut(index * self.size..).unwrap_or_default();
            let part = self.columns(x, index);
            multiply(output, x.matrix().1, Into::Overwrite, 1.0, part, block, Cores::All);
        }
        product
    }
}

impl Operation for BlockProduct {
    const NAME: &'static str = "block_product";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let [x, blocks] = [inputs[0], inputs[1]];
        Ok(Output::new(self.product(&x, self.blocks(&blocks, x.matrix().1)), x.shape.to_vec()))
    }

    /// `g Bᵀ` for x, and `xᵀ g` of its columns for each block.
    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, needed, gradient, .. } = pass;
        let ([x, blocks], size) = ([inputs[0], inputs[1]], self.size);
        let (_, columns) = x.matrix();
        let mut gradients = vec![Gradient::None, Gradient::None];
        if needed[0] {
            gradients[0] = Gradient::Values(self.product(&gradient, self.blocks(&blocks, columns).map(Matrix::t)));
        }
        if needed[1] {
            let (mut values, count) = (vec![T::zero(); blocks.data.len()], blocks.shape[0]);
            for index in 0..columns / size {
                let output = &mut values[index % count * size * size..][..size * size];
                let (x, g) = (self.columns(&x, index), self.columns(&gradient, index));
                multiply(output, size, Into::Add, 1.0, x.t(), g, Cores::All);
            }
            gradients[1] = Gradient::Values(values);
        }
        Ok(gradients)
    }
}
