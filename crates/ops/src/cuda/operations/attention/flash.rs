//! Attention by the kernels of flash_attention.cu, which multiply with tensor cores and keep what they can in registers.

use candle_core::Result;

use super::{Batch, Cut, Group, Inputs, Needed, Plan, Tiles, To, Upstream};
use crate::cuda::{Buffer, Element, Gpu, Grid, Kernel};

// Of flash_attention.cu.
const TILE: usize = 64;
const SQUARE: usize = 16;
const PADDING: usize = 8;
const WARP: usize = 32;

/// The bytes that kernels read and write at once, and the place of what they read so is a multiple of.
const ALIGNMENT: u64 = 16;

/// Which of the kernels a batch takes.
#[derive(Clone, Copy)]
pub(super) struct Flash {
    /// The columns of a head.
    width: usize,
    /// The keys that a block of the backward pass takes at most: 128 or 64, as 99 KiB of shared memory have room for.
    keys: usize,
    /// Whether no sequence has more, so that such a block makes the gradients of queries as well.
    is_whole: bool,
}

impl Flash {
    /// The kernels for a batch, if there are such; `others` are the addresses of what it reads and writes besides the inputs.
    pub(super) fn of(batch: &Batch, inputs: &Inputs, others: &[u64]) -> Option<Self> {
        let (width, longest) = (batch.head(inputs), batch.longest());
        let addresses = [inputs.query.pointer, inputs.key, inputs.value];
        let is_aligned = addresses.iter().chain(others).all(|address| address % ALIGNMENT == 0);
        let fits =
            inputs.query.element == Element::Bf16 && matches!(width, 32 | 64 | 128) && batch.positions().is_none();
        let keys = if width <= 64 && longest > TILE { 2 * TILE } else { TILE };
        (fits && is_aligned).then_some(Self { width, keys, is_whole: longest <= keys })
    }

    fn cut(self) -> Cut {
        Cut { queries: TILE, keys: self.keys }
    }

    /// The bytes of so many rows of a head, and of so many numbers in f32.
    fn shared_memory(self, rows: usize, numbers: usize) -> usize {
        rows * (self.width + PADDING) * Element::Bf16.bytes() + numbers * Element::F32.bytes()
    }

    /// Blocks of so many threads, one for each head of each tile, a tile's side by side.
    fn grid(batch: &Batch, tiles: &Tiles, threads: usize, shared: usize) -> Grid {
        Grid { blocks: (tiles.count * batch.heads, 1), threads: (threads, 1), shared }
    }

    /// All heads at once.
    fn group(batch: &Batch) -> Group {
        Group { heads: 0..batch.heads, of_queries: None, of_keys: None }
    }

    fn kernel<'k>(self, name: &str) -> Kernel<'k> {
        Kernel::of(format!("flash_{name}_{}", self.width), Element::Bf16)
    }

    /// As [`Batch::forward`], into that output and those logarithms.
    pub(super) fn forward(
        self,
        batch: &Batch,
        gpu: &Gpu,
        inputs: &Inputs,
        (output, logarithms): (&Buffer, &Buffer),
    ) -> Result<()> {
        gpu.with_plan(batch, self.cut(), |plan| {
            let kernel = batch.forward_of(self.kernel("forward"), inputs, (output, logarithms));
            let shared = self.shared_memory(5 * TILE, 2 * 2 * TILE);
            let work = (&plan.query_tiles, Self::grid(batch, &plan.query_tiles, TILE / SQUARE * WARP, shared));
            // SAFETY: flash_attention.cu, flash_forward: keys and values are those of `Inputs`.
            unsafe { batch.launch(gpu, plan, &Self::group(batch), inputs, work, kernel) }
        })
    }

    /// As [`Batch::backward`].
    pub(super) fn backward(
        self,
        batch: &Batch,
        gpu: &Gpu,
        inputs: &Inputs,
        upstream: &Upstream,
        needed: &Needed,
        to: &To,
    ) -> Result<Option<Buffer>> {
        gpu.with_plan(batch, self.cut(), |plan| {
            let sums = if needed.table { batch.table_sums(gpu, plan, plan.key_tiles.count)? } else { None };
            let of_keys = needed.keys || needed.table;
            let by_keys = self.is_whole && needed.query && of_keys;
            if of_keys {
                let of_distances = sums.as_ref().map_or(0, |sums| sums.parts.pointer());
                let name = if by_keys { "backward" } else { "keys" };
                let kernel = Kernel::of(format!("flash_{name}_{}_{}", self.width, self.keys), Element::Bf16);
                let kernel = if by_keys { kernel.address(to.query) } else { kernel };
                let kernel = upstream.after(kernel, &[to.key, to.value, of_distances], inputs);
                // SAFETY: flash_attention.cu: the gradients are as large as what they are gradients of.
                unsafe { self.run_on_keys(batch, gpu, plan, inputs, kernel) }?;
            }
            if needed.query && !by_keys {
                let kernel = upstream.after(self.kernel("queries"), &[to.query], inputs);
                let shared = self.shared_memory(4 * TILE, 2 * TILE + 2 * TILE);
                let work = (&plan.query_tiles, Self::grid(batch, &plan.query_tiles, TILE / SQUARE * WARP, shared));
                // SAFETY: flash_attention.cu, flash_queries: as above.
                unsafe { batch.launch(gpu, plan, &Self::group(batch), inputs, work, kernel) }?;
            }
            sums.map(|sums| sums.total(gpu)).transpose()
        })
    }

    /// Runs a kernel with a block for each tile of keys.
    ///
    /// # Safety
    /// As [`Batch::launch`].
    unsafe fn run_on_keys<'k>(
        self,
        batch: &'k Batch,
        gpu: &Gpu,
        plan: &'k Plan,
        inputs: &Inputs,
        kernel: Kernel<'k>,
    ) -> Result<()> {
        let of_scores = self.keys * (TILE + PADDING) * Element::Bf16.bytes();
        let shared = of_scores + self.shared_memory(2 * self.keys + 2 * TILE, 2 * TILE + self.keys + TILE);
        let grid = Self::grid(batch, &plan.key_tiles, self.keys / SQUARE * WARP, shared);
        // SAFETY: as the caller promises.
        unsafe { batch.launch(gpu, plan, &Self::group(batch), inputs, (&plan.key_tiles, grid), kernel) }
    }
}

#[cfg(test)]
mod tests;
