//! Attention on a GPU.

use candle_core::{Result, bail};

use super::gpu::Grid;
use super::pointwise::dropout_arguments;
use super::{Argument, Array, Buffer, Element, Gpu, GpuGradient, GpuOperation, Indices};
use crate::attention::Attention;
use crate::dropout::Dropout;
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
    fn new(gpu: &Gpu, batch: &Batch, tile: usize) -> Result<Self> {
        let Batch { queries, keys, heads, .. } = *batch;
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

    fn is_of(&self, batch: &Batch, tile: usize) -> bool {
        let Self { queries, keys, heads, .. } = self;
        self.tile == tile && *heads == batch.heads && queries == batch.queries && keys == batch.keys
    }
}

/// How many batches' plans are kept: all layers of a pass use one or two.
const PLANS: usize = 4;

impl Gpu {
    /// The plan of a batch, made by its first layer.
    fn with_plan<R>(&self, batch: &Batch, tile: usize, use_it: impl FnOnce(&Plan) -> Result<R>) -> Result<R> {
        let mut plans = self.plans();
        let plan = match plans.iter().position(|plan| plan.is_of(batch, tile)) {
            Some(place) => plans.remove(place),
            None => Plan::new(self, batch, tile)?,
        };
        let result = use_it(&plan);
        plans.insert(0, plan);
        plans.truncate(PLANS);
        result
    }
}

/// Attention as the kernels compute it.
pub(super) struct Batch<'a> {
    pub queries: &'a Segments,
    pub keys: &'a Segments,
    pub heads: usize,
    /// How many keys of a sequence stand before that of its first query's token.
    pub prefix: usize,
    /// How far from its token a query sees, if not all keys.
    pub window: Option<usize>,
    pub scale: f64,
    pub dropout: Option<Dropout>,
    pub bias: Option<Bias<'a>>,
}

/// What is added to each head's scores by distance.
pub(super) struct Bias<'a> {
    pub table: Array<'a>, // (rows, heads), f32
    /// The table's row by distance, from that of 1 - longest to that of longest - 1.
    pub rows: &'a Indices,
    pub longest: usize,
}

impl Bias<'_> {
    fn distances(&self) -> usize {
        2 * self.longest - 1
    }
}

/// The matrices that are attended with, of one type.
pub(super) struct Inputs<'a> {
    pub query: Array<'a>, // (queries, hidden)
    /// The addresses of the first key and the first value, and how far it is to the next ones.
    pub key: u64,
    pub value: u64,
    pub key_stride: usize,
}

/// What the forward pass has left, and the gradient of its result.
pub(super) struct Upstream<'a> {
    pub output: Array<'a>,
    pub gradient: Array<'a>,
    /// Of each query's sum of exponentials, `(heads, queries)`.
    pub logarithms: &'a Buffer,
}

/// One of the three kernels.
struct Kernel<'a> {
    name: &'static str,
    tiles: &'a Tiles,
    /// How many tiles it keeps: of a head's columns, of scores in the numbers' type, of f32 scores, of f32 columns.
    tables: (usize, usize, usize, usize),
}

impl Batch<'_> {
    /// Runs a kernel on the columns of tiles after those of its arguments that come first.
    fn run(&self, gpu: &Gpu, plan: &Plan, kernel: &Kernel, inputs: &Inputs, first: &[Argument]) -> Result<()> {
        let (queries, hidden) = inputs.query.matrix();
        let (head, element) = (hidden / self.heads, inputs.query.element);
        let (width, tile) = shape(element, head)?;
        let padded = |columns: usize, bytes: usize| columns * bytes + 16;
        let (columns, scores, exact_scores, exact_columns) = kernel.tables;
        let shared = tile
            * (columns * padded(width, element.bytes())
                + scores * padded(tile, element.bytes())
                + exact_scores * padded(tile, 4)
                + exact_columns * padded(width, 4)
                + 2 * 4); // For each distance in a tile of scores, one number.
        let longest = self.keys.ranges().map(|keys| keys.len()).max().unwrap_or(0);
        let window = self.window.map_or(longest, |window| window.min(longest));
        let mut arguments = first.to_vec();
        arguments.extend([&plan.sequences, &kernel.tiles.table].map(Argument::from));
        arguments.extend([hidden, inputs.key_stride, head, queries, window, self.prefix].map(Argument::from));
        arguments.push((self.scale as f32).into());
        arguments.extend(dropout_arguments(self.dropout));
        arguments.extend(match &self.bias {
            Some(bias) => [bias.rows.into(), bias.longest.into(), bias.table.into()],
            None => [Argument::NULL, 0.into(), Argument::NULL],
        });
        let grid = Grid { blocks: (kernel.tiles.count, self.heads), threads: (2 * tile, 1), shared };
        gpu.launch(&element.kernel(&format!("{}_{width}", kernel.name)), grid, &arguments)
    }

    fn tile(&self, inputs: &Inputs) -> Result<usize> {
        let (_, hidden) = inputs.query.matrix();
        Ok(shape(inputs.query.element, hidden / self.heads)?.1)
    }

    /// The result, `(queries, hidden)`, and the logarithm of each query's sum of exponentials, `(heads, queries)`.
    pub fn forward(&self, gpu: &Gpu, inputs: &Inputs) -> Result<(Buffer, Buffer)> {
        let (query, (queries, _)) = (inputs.query, inputs.query.matrix());
        let output = gpu.empty(query.element, query.count())?;
        let logarithms = gpu.empty(Element::F32, self.heads * queries)?;
        let first = [output.pointer()?, logarithms.pointer()?, query.pointer, inputs.key, inputs.value];
        gpu.with_plan(self, self.tile(inputs)?, |plan| {
            let kernel = Kernel { name: "attention_forward", tiles: &plan.query_tiles, tables: (3, 1, 1, 1) };
            self.run(gpu, plan, &kernel, inputs, &first.map(Argument::Pointer))
        })?;
        Ok((output, logarithms))
    }

    /// What the kernels of the backward pass are given behind the addresses of the gradients.
    fn given(inputs: &Inputs, upstream: &Upstream) -> Result<[u64; 6]> {
        let Upstream { output, gradient, logarithms } = upstream;
        let ends = (output.pointer, gradient.pointer, logarithms.pointer()?);
        Ok([inputs.query.pointer, inputs.key, inputs.value, ends.0, ends.1, ends.2])
    }

    /// The gradient of the queries; `of_bias`: and of the scores by distance, `(distances, heads)`, where there is a bias.
    pub fn query_gradients(
        &self,
        gpu: &Gpu,
        inputs: &Inputs,
        upstream: &Upstream,
        of_bias: bool,
    ) -> Result<(Buffer, Option<Buffer>)> {
        let dq = gpu.empty(inputs.query.element, inputs.query.count())?;
        gpu.with_plan(self, self.tile(inputs)?, |plan| {
            let (blocks, columns) = match &self.bias {
                Some(bias) if of_bias => (plan.query_tiles.count, bias.distances() * self.heads),
                _ => (0, 0),
            };
            let parts = (blocks > 0).then(|| gpu.zeros(Element::F32, blocks * columns)).transpose()?;
            let of_distances = parts.as_ref().map_or(Ok(0), Buffer::pointer)?;
            let first = [dq.pointer()?, of_distances].into_iter().chain(Self::given(inputs, upstream)?);
            let kernel = Kernel { name: "attention_queries", tiles: &plan.query_tiles, tables: (4, 2, 2, 0) };
            self.run(gpu, plan, &kernel, inputs, &first.map(Argument::Pointer).collect::<Vec<_>>())?;
            let sums = parts.map(|parts| gpu.column_sums(parts.array(&[blocks, columns])?)).transpose()?;
            Ok((dq, sums))
        })
    }

    /// The gradients of keys and of values, to two addresses; they lie there as keys and values do.
    pub fn key_gradients(&self, gpu: &Gpu, inputs: &Inputs, upstream: &Upstream, to: [u64; 2]) -> Result<()> {
        let first = to.into_iter().chain(Self::given(inputs, upstream)?);
        gpu.with_plan(self, self.tile(inputs)?, |plan| {
            let kernel = Kernel { name: "attention_keys", tiles: &plan.key_tiles, tables: (4, 2, 2, 0) };
            self.run(gpu, plan, &kernel, inputs, &first.map(Argument::Pointer).collect::<Vec<_>>())
        })
    }
}

impl Attention {
    fn batch(&self, hidden: usize) -> Batch<'_> {
        let Self { queries, segments: keys, heads, dropout, .. } = self;
        let scale = 1.0 / ((hidden / heads) as f64).sqrt();
        Batch { queries, keys, heads: *heads, prefix: 0, window: None, scale, dropout: *dropout, bias: None }
    }
}

fn apart<'a>(inputs: &[Array<'a>]) -> Inputs<'a> {
    let [query, key, value] = [inputs[0], inputs[1], inputs[2]];
    Inputs { query, key: key.pointer, value: value.pointer, key_stride: key.matrix().1 }
}

impl GpuOperation for Attention {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        let (output, logarithms) = self.batch(inputs[0].matrix().1).forward(gpu, &apart(inputs))?;
        let _ = self.logarithms.set(logarithms);
        Ok((output, inputs[0].shape.to_vec()))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        needed: &[bool],
        output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let Some(logarithms) = self.logarithms.get() else { bail!("attention: backward before forward") };
        let (batch, key) = (self.batch(inputs[0].matrix().1), inputs[1]);
        let (inputs, upstream) = (apart(inputs), Upstream { output, gradient, logarithms });
        let mut gradients = vec![GpuGradient::None, GpuGradient::None, GpuGradient::None];
        if needed[0] {
            gradients[0] = GpuGradient::Values(batch.query_gradients(gpu, &inputs, &upstream, false)?.0);
        }
        if needed[1] || needed[2] {
            let (dk, dv) = (gpu.empty(key.element, key.count())?, gpu.empty(key.element, key.count())?);
            batch.key_gradients(gpu, &inputs, &upstream, [dk.pointer()?, dv.pointer()?])?;
            let keep = |needed, values| if needed { GpuGradient::Values(values) } else { GpuGradient::None };
            (gradients[1], gradients[2]) = (keep(needed[1], dk), keep(needed[2], dv));
        }
        Ok(gradients)
    }
}
