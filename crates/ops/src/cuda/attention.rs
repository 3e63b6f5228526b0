//! Attention on a GPU.

use candle_core::{Result, bail};

use super::gpu::Grid;
use super::pointwise::dropout_arguments;
use super::{Argument, Array, Buffer, Element, Gpu, GpuGradient, GpuOperation, Indices};
use crate::attention::Attention;
use crate::segments::Segments;

/// What the blocks of a batch's attention work on, on the GPU.
pub(crate) struct Plan {
    queries: Segments,
    keys: Segments,
    heads: usize,
    tile: usize,
    /// For each sequence its first query, queries, first key, keys, and the position of its first probability.
    sequences: Indices,
    /// A sequence and the first of its queries that a block takes, those with most keys first.
    query_tiles: Tiles,
    /// Likewise of keys, those with most queries first.
    key_tiles: Tiles,
}

struct Tiles {
    count: usize,
    table: Indices,
}

impl Tiles {
    /// `rows` and `work` of each sequence: what is cut into tiles, and how long a tile takes.
    fn new(gpu: &Gpu, tile: usize, sequences: impl Iterator<Item = (usize, usize)>) -> Result<Self> {
        let mut tiles = Vec::new();
        for (sequence, (rows, work)) in sequences.enumerate() {
            tiles.extend((0..rows).step_by(tile).map(|first| (work, sequence as u32, first as u32)));
        }
        tiles.sort_by_key(|&(work, ..)| std::cmp::Reverse(work));
        let table: Vec<u32> = tiles.iter().flat_map(|&(_, sequence, first)| [sequence, first]).collect();
        Ok(Self { count: tiles.len(), table: gpu.indices(&table)? })
    }
}

/// The columns that a kernel has for a head, and the rows of its tiles: as many as 99 KiB of shared memory take, the least that cards
/// of these generations give to a block (CUDA programming guide, technical specifications).
fn shape(element: Element, head: usize) -> Result<(usize, usize)> {
    Ok(match (element, head) {
        (Element::F32, ..=32) => (32, 32),
        (Element::Bf16, ..=32) => (32, 64),
        (Element::F32, ..=64) => (64, 32),
        (Element::Bf16, ..=64) => (64, 64),
        (_, ..=128) => (128, 32),
        (_, ..=256) => (256, 16),
        _ => bail!("attention: a head of {head} columns; the GPU's kernels take up to 256"),
    })
}

impl Plan {
    fn new(gpu: &Gpu, attention: &Attention, tile: usize) -> Result<Self> {
        let (queries, keys, heads) = (&attention.queries, &attention.segments, attention.heads);
        let mut first_probability = 0u32;
        let mut sequences = Vec::with_capacity(5 * keys.len());
        for (queries, keys) in queries.ranges().zip(keys.ranges()) {
            let numbers = [queries.start, queries.len(), keys.start, keys.len()].map(|number| number as u32);
            sequences.extend(numbers);
            sequences.push(first_probability);
            first_probability = first_probability.wrapping_add((heads * queries.len() * keys.len()) as u32);
        }
        let lengths = || queries.ranges().zip(keys.ranges()).map(|(queries, keys)| (queries.len(), keys.len()));
        Ok(Self {
            sequences: gpu.indices(&sequences)?,
            query_tiles: Tiles::new(gpu, tile, lengths())?,
            key_tiles: Tiles::new(gpu, tile, lengths().map(|(queries, keys)| (keys, queries)))?,
            queries: queries.clone(),
            keys: keys.clone(),
            heads,
            tile,
        })
    }

    fn is_of(&self, attention: &Attention, tile: usize) -> bool {
        let Self { queries, keys, heads, .. } = self;
        self.tile == tile && *heads == attention.heads && *queries == attention.queries && *keys == attention.segments
    }
}

/// How many batches' plans are kept: all layers of a pass use one or two.
const PLANS: usize = 4;

impl Gpu {
    /// The plan of a batch, made by its first layer.
    fn with_plan<R>(&self, attention: &Attention, tile: usize, use_it: impl FnOnce(&Plan) -> Result<R>) -> Result<R> {
        let mut plans = self.plans();
        let plan = match plans.iter().position(|plan| plan.is_of(attention, tile)) {
            Some(place) => plans.remove(place),
            None => Plan::new(self, attention, tile)?,
        };
        let result = use_it(&plan);
        plans.insert(0, plan);
        plans.truncate(PLANS);
        result
    }
}

/// One of the three kernels.
struct Kernel<'a> {
    name: &'static str,
    tiles: &'a Tiles,
    /// How many tiles it keeps: of a head's columns, of scores in the numbers' type, of f32 scores, of f32 columns.
    tables: (usize, usize, usize, usize),
}

impl Attention {
    /// Runs a kernel on a tile's columns after those of its arguments that come first.
    fn run(&self, gpu: &Gpu, plan: &Plan, kernel: &Kernel, query: Array, first: &[Argument]) -> Result<()> {
        let (queries, hidden) = query.matrix();
        let head = hidden / self.heads;
        let (width, tile) = shape(query.element, head)?;
        let (bytes, padded) = (query.element.bytes(), |columns: usize, bytes: usize| columns * bytes + 16);
        let (columns, scores, exact_scores, exact_columns) = kernel.tables;
        let shared = tile
            * (columns * padded(width, bytes)
                + scores * padded(tile, bytes)
                + exact_scores * padded(tile, 4)
                + exact_columns * padded(width, 4));
        let mut arguments = first.to_vec();
        arguments.extend([&plan.sequences, &kernel.tiles.table].map(Argument::from));
        arguments.extend([hidden, head, queries].map(Argument::from));
        arguments.push((1.0 / (head as f32).sqrt()).into());
        arguments.extend(dropout_arguments(self.dropout));
        let grid = Grid { blocks: (kernel.tiles.count, self.heads), threads: (2 * tile, 1), shared };
        gpu.launch(&query.element.kernel(&format!("{}_{width}", kernel.name)), grid, &arguments)
    }
}

impl GpuOperation for Attention {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        let query = inputs[0];
        let ((queries, hidden), element) = (query.matrix(), query.element);
        let (_, tile) = shape(element, hidden / self.heads)?;
        let output = gpu.empty(element, query.count())?;
        let logarithms = gpu.empty(Element::F32, self.heads * queries)?; // (heads, queries)
        let mut first = [output.pointer()?, logarithms.pointer()?].map(Argument::Pointer).to_vec();
        first.extend(inputs.iter().map(|&input| Argument::from(input)));
        gpu.with_plan(self, tile, |plan| {
            let kernel = Kernel { name: "attention_forward", tiles: &plan.query_tiles, tables: (3, 1, 1, 1) };
            self.run(gpu, plan, &kernel, query, &first)
        })?;
        let _ = self.logarithms.set(logarithms);
        Ok((output, query.shape.to_vec()))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        needed: &[bool],
        output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let [query, key, value] = [inputs[0], inputs[1], inputs[2]];
        let (_, hidden) = query.matrix();
        let (_, tile) = shape(query.element, hidden / self.heads)?;
        let Some(logarithms) = self.logarithms.get() else { bail!("attention: backward before forward") };
        let given: Vec<Argument> = [query, key, value, output, gradient]
            .map(Argument::from)
            .into_iter()
            .chain([Argument::Pointer(logarithms.pointer()?)])
            .collect();
        let mut gradients = vec![GpuGradient::None, GpuGradient::None, GpuGradient::None];
        gpu.with_plan(self, tile, |plan| {
            if needed[0] {
                let dq = gpu.empty(query.element, query.count())?;
                let first = [&[Argument::Pointer(dq.pointer()?)], given.as_slice()].concat();
                let kernel = Kernel { name: "attention_queries", tiles: &plan.query_tiles, tables: (4, 2, 2, 0) };
                self.run(gpu, plan, &kernel, query, &first)?;
                gradients[0] = GpuGradient::Values(dq);
            }
            if needed[1] || needed[2] {
                let (dk, dv) = (gpu.empty(query.element, key.count())?, gpu.empty(query.element, key.count())?);
                let new = [dk.pointer()?, dv.pointer()?].map(Argument::Pointer);
                let first = [new.as_slice(), &given].concat();
                let kernel = Kernel { name: "attention_keys", tiles: &plan.key_tiles, tables: (4, 2, 2, 0) };
                self.run(gpu, plan, &kernel, query, &first)?;
                let keep = |needed, values| if needed { GpuGradient::Values(values) } else { GpuGradient::None };
                (gradients[1], gradients[2]) = (keep(needed[1], dk), keep(needed[2], dv));
            }
            Ok(())
        })?;
        Ok(gradients)
    }
}
