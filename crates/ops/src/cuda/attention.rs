//! Attention on a GPU.

use std::ops::Range;

use candle_core::{Result, bail};

use super::gpu::Grid;
use super::pointwise::dropout_arguments;
use super::{Argument, Array, Buffer, Element, Gpu, GpuGradient, GpuOperation, Indices};
use crate::attention::Attention;
use crate::dropout::Dropout;
use crate::relative_attention::RelativeRows;
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
    /// Of disentangled attention.
    reach: Option<Reach>,
}

/// Which rows of the positions the sequences' distances reach.
struct Reach {
    rows: RelativeRows,
    /// For each sequence the first row, how many, and where a head's products of its queries and of its keys with them begin.
    table: Indices,
    /// How many products there are of a head's queries, and of its keys.
    query_products: usize,
    key_products: usize,
}

impl Reach {
    fn new(gpu: &Gpu, rows: &RelativeRows, queries: &Segments, keys: &Segments) -> Result<Self> {
        let mut table = Vec::with_capacity(4 * keys.len());
        let (mut query_products, mut key_products) = (0, 0);
        for (queries, keys) in queries.ranges().zip(keys.ranges()) {
            let reached = rows.reached(keys.len());
            table.extend([reached.start, reached.len(), query_products, key_products].map(|number| number as u32));
            query_products += queries.len() * reached.len();
            key_products += keys.len() * reached.len();
        }
        Ok(Self { rows: rows.clone(), table: gpu.indices(&table)?, query_products, key_products })
    }
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
            reach: batch.positions().map(|rows| Reach::new(gpu, rows, queries, keys)).transpose()?,
            queries: queries.clone(),
            keys: keys.clone(),
            heads,
            tile,
        })
    }

    fn is_of(&self, batch: &Batch, tile: usize) -> bool {
        let Self { queries, keys, heads, .. } = self;
        let is_same = match (&self.reach, batch.positions()) {
            (Some(reach), Some(rows)) => reach.rows.is_same(rows),
            (reach, rows) => reach.is_none() && rows.is_none(),
        };
        is_same && self.tile == tile && *heads == batch.heads && queries == batch.queries && keys == batch.keys
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
    pub distances: Option<Distances<'a>>,
}

/// What distances add to the scores.
pub(super) struct Distances<'a> {
    /// The table's row by distance.
    pub rows: &'a RelativeRows,
    pub uploaded: &'a Indices,
    pub table: Array<'a>,
    pub term: Term,
}

/// What a table of distances holds.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Term {
    /// A number for each head, in f32.
    Bias,
    /// The positions that queries meet, then those that keys meet, `(rows, hidden)` each, of the type of both.
    Disentangled { to_position: bool, to_content: bool },
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

/// Where gradients go: the addresses of those of queries, keys and values, which lie there as what they are gradients of.
pub(super) struct To {
    pub query: u64,
    pub key: u64,
    pub value: u64,
}

/// Which gradients are asked for. Where others are computed, they are written all the same.
pub(super) struct Needed {
    pub query: bool,
    pub keys: bool,
    pub table: bool,
}

/// Which rows an operand has: one for each query, or for each key.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Queries,
    Keys,
}

/// Some heads, and their products of queries and of keys with positions. Memory may not hold those of all heads at once.
struct Group {
    heads: Range<usize>,
    of_queries: Option<Buffer>,
    of_keys: Option<Buffer>,
}

/// How many numbers products of several heads may take, 64 MiB of them; in the backward pass their gradients take as much again.
const PRODUCTS: usize = 16 << 20;

/// Tiles that one block sums the positions' gradient over. What a sum comes to depends on it, never on the card.
const SLICE: usize = 16;

/// One of the kernels.
struct Kernel<'a> {
    name: &'static str,
    tiles: &'a Tiles,
    blocks: usize,
    /// How many tiles it keeps: of a head's columns, of scores in the numbers' type, of f32 scores, of f32 columns.
    tables: (usize, usize, usize, usize),
}

impl<'a> Kernel<'a> {
    /// A block for each tile.
    fn new(name: &'static str, tiles: &'a Tiles, tables: (usize, usize, usize, usize)) -> Self {
        Self { name, tiles, blocks: tiles.count, tables }
    }
}

fn pointer(buffer: &Option<Buffer>) -> Result<u64> {
    buffer.as_ref().map_or(Ok(0), Buffer::pointer)
}

impl Batch<'_> {
    /// The rows of positions, if there are such.
    fn positions(&self) -> Option<&RelativeRows> {
        self.distances.as_ref().filter(|distances| distances.term != Term::Bias).map(|distances| distances.rows)
    }

    /// Whether those rows meet positions.
    fn meets(&self, side: Side) -> bool {
        match self.distances.as_ref().map(|distances| distances.term) {
            Some(Term::Disentangled { to_position, to_content }) => match side {
                Side::Queries => to_position,
                Side::Keys => to_content,
            },
            _ => false,
        }
    }

    /// How many columns of the table stand before the positions that those rows meet.
    fn first_column(&self, side: Side, hidden: usize) -> usize {
        if side == Side::Keys && self.meets(Side::Queries) { hidden } else { 0 }
    }

    /// The address of those positions; of nothing if there are none.
    fn table(&self, side: Side, hidden: usize) -> u64 {
        self.distances.as_ref().filter(|_| self.meets(side)).map_or(0, |distances| {
            distances.table.pointer + (self.first_column(side, hidden) * distances.table.element.bytes()) as u64
        })
    }

    /// Runs a kernel on the columns of tiles after those of its arguments that come first.
    fn run(
        &self,
        gpu: &Gpu,
        plan: &Plan,
        group: &Group,
        kernel: &Kernel,
        inputs: &Inputs,
        first: &[Argument],
    ) -> Result<()> {
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
        let (rows, longest, table) = match &self.distances {
            Some(distances) => (distances.uploaded.into(), distances.rows.longest, Some(distances)),
            None => (Argument::NULL, 0, None),
        };
        let bias = table.filter(|distances| distances.term == Term::Bias);
        arguments.extend([rows, longest.into(), bias.map_or(Argument::NULL, |bias| bias.table.into())]);
        arguments.push(plan.reach.as_ref().map_or(Argument::NULL, |reach| (&reach.table).into()));
        arguments.extend([pointer(&group.of_queries)?, pointer(&group.of_keys)?].map(Argument::Pointer));
        let counts = plan.reach.as_ref().map_or((0, 0), |reach| (reach.query_products, reach.key_products));
        let stride = table.map_or(0, |distances| distances.table.matrix().1);
        arguments.extend([counts.0, counts.1, stride, group.heads.start].map(Argument::from));
        let grid = Grid { blocks: (kernel.blocks, group.heads.len()), threads: (2 * tile, 1), shared };
        gpu.launch(&element.kernel(&format!("{}_{width}", kernel.name)), grid, &arguments)
    }

    fn tile(&self, inputs: &Inputs) -> Result<usize> {
        let (_, hidden) = inputs.query.matrix();
        Ok(shape(inputs.query.element, hidden / self.heads)?.1)
    }

    /// The heads in groups: with products with positions as many as memory is lent for, without such all at once.
    fn groups(&self, plan: &Plan) -> impl Iterator<Item = Range<usize>> {
        let size = plan.reach.as_ref().map_or(self.heads, |reach| {
            (PRODUCTS / (reach.query_products + reach.key_products).max(1)).clamp(1, self.heads)
        });
        let heads = self.heads;
        (0..heads).step_by(size).map(move |first| first..(first + size).min(heads))
    }

    /// Memory for the products of those rows with positions, if they meet such.
    fn products(
        &self,
        plan: &Plan,
        side: Side,
        heads: usize,
        memory: impl Fn(Element, usize) -> Result<Buffer>,
    ) -> Result<Option<Buffer>> {
        let Some(reach) = plan.reach.as_ref().filter(|_| self.meets(side)) else { return Ok(None) };
        let count = match side {
            Side::Queries => reach.query_products,
            Side::Keys => reach.key_products,
        };
        memory(Element::F32, heads * count).map(Some)
    }

    /// A group, its products computed.
    fn group(&self, gpu: &Gpu, plan: &Plan, inputs: &Inputs, heads: Range<usize>) -> Result<Group> {
        let memory = |side| self.products(plan, side, heads.len(), |element, count| gpu.empty(element, count));
        let group = Group { of_queries: memory(Side::Queries)?, of_keys: memory(Side::Keys)?, heads: heads.clone() };
        let (_, hidden) = inputs.query.matrix();
        let sides = [
            (Side::Queries, &group.of_queries, inputs.query.pointer, &plan.query_tiles),
            (Side::Keys, &group.of_keys, inputs.key, &plan.key_tiles),
        ];
        for (side, products, x, tiles) in sides {
            let Some(products) = products else { continue };
            let mut first = [products.pointer()?, x, self.table(side, hidden)].map(Argument::Pointer).to_vec();
            first.push(Argument::Count(u32::from(side == Side::Keys)));
            let kernel = Kernel::new("position_products", tiles, (2, 0, 1, 0));
            self.run(gpu, plan, &group, &kernel, inputs, &first)?;
        }
        Ok(group)
    }

    /// The result, `(queries, hidden)`, and the logarithm of each query's sum of exponentials, `(heads, queries)`.
    pub fn forward(&self, gpu: &Gpu, inputs: &Inputs) -> Result<(Buffer, Buffer)> {
        let (query, (queries, _)) = (inputs.query, inputs.query.matrix());
        let output = gpu.empty(query.element, query.count())?;
        let logarithms = gpu.empty(Element::F32, self.heads * queries)?;
        let first = [output.pointer()?, logarithms.pointer()?, query.pointer, inputs.key, inputs.value];
        gpu.with_plan(self, self.tile(inputs)?, |plan| {
            for heads in self.groups(plan) {
                let group = self.group(gpu, plan, inputs, heads)?;
                let kernel = Kernel::new("attention_forward", &plan.query_tiles, (3, 1, 1, 1));
                self.run(gpu, plan, &group, &kernel, inputs, &first.map(Argument::Pointer))?;
            }
            Ok(())
        })?;
        Ok((output, logarithms))
    }

    /// Writes the gradients of queries, keys and values. The result is that of the table, `(rows, columns)` in f32; of a bias that of
    /// each distance, `(distances, heads)`.
    pub fn backward(
        &self,
        gpu: &Gpu,
        inputs: &Inputs,
        upstream: &Upstream,
        needed: &Needed,
        to: &To,
    ) -> Result<Option<Buffer>> {
        let (_, hidden) = inputs.query.matrix();
        let Upstream { output, gradient, logarithms } = upstream;
        let [query, output, gradient] = [&inputs.query, output, gradient].map(|array| array.pointer);
        let given = [query, inputs.key, inputs.value, output, gradient, logarithms.pointer()?];
        let with = |first: &[u64]| [first, &given].concat().into_iter().map(Argument::Pointer).collect::<Vec<_>>();
        gpu.with_plan(self, self.tile(inputs)?, |plan| {
            let sums = if needed.table { self.table_sums(gpu, plan)? } else { None };
            let of_table = sums.as_ref().map_or(Ok(0), |sums| sums.parts.pointer())?;
            let of_distances = if self.positions().is_none() { of_table } else { 0 };
            for heads in self.groups(plan) {
                let group = self.group(gpu, plan, inputs, heads)?;
                let zeros =
                    |side| self.products(plan, side, group.heads.len(), |element, count| gpu.zeros(element, count));
                let (of_queries, of_keys) = (zeros(Side::Queries)?, zeros(Side::Keys)?);
                if needed.query || needed.table {
                    let first = [to.query, of_distances, pointer(&of_queries)?, self.table(Side::Queries, hidden)];
                    let kernel = Kernel::new("attention_queries", &plan.query_tiles, (4, 2, 2, 0));
                    self.run(gpu, plan, &group, &kernel, inputs, &with(&first))?;
                }
                if needed.keys || needed.table && self.meets(Side::Keys) {
                    let first = [to.key, to.value, pointer(&of_keys)?, self.table(Side::Keys, hidden)];
                    let kernel = Kernel::new("attention_keys", &plan.key_tiles, (4, 2, 2, 0));
                    self.run(gpu, plan, &group, &kernel, inputs, &with(&first))?;
                }
                let Some(sums) = sums.as_ref().filter(|_| self.positions().is_some()) else { continue };
                self.add_positions(gpu, plan, &group, inputs, sums, (Side::Queries, of_queries.as_ref()))?;
                self.add_positions(gpu, plan, &group, inputs, sums, (Side::Keys, of_keys.as_ref()))?;
            }
            sums.map(|Sums { parts, count, shape: [rows, columns] }| {
                gpu.column_sums(parts.array(&[count, rows * columns])?)
            })
            .transpose()
        })
    }

    /// Memory for the parts of the table's gradient.
    fn table_sums(&self, gpu: &Gpu, plan: &Plan) -> Result<Option<Sums>> {
        let Some(Distances { rows, table, term, .. }) = &self.distances else { return Ok(None) };
        let (count, shape) = match term {
            Term::Bias => (plan.query_tiles.count, [rows.rows.len(), self.heads]),
            Term::Disentangled { .. } => {
                let tiles = plan.query_tiles.count.max(plan.key_tiles.count);
                (tiles.div_ceil(SLICE), [table.matrix().0, table.matrix().1])
            }
        };
        let numbers = count * shape[0] * shape[1];
        let parts = match term {
            Term::Bias => gpu.zeros(Element::F32, numbers)?,
            Term::Disentangled { .. } => gpu.empty(Element::F32, numbers)?,
        };
        Ok(Some(Sums { parts, count, shape }))
    }

    /// Writes the parts of the gradient of the positions that a group's queries, or its keys, have met.
    fn add_positions(
        &self,
        gpu: &Gpu,
        plan: &Plan,
        group: &Group,
        inputs: &Inputs,
        sums: &Sums,
        (side, of_products): (Side, Option<&Buffer>),
    ) -> Result<()> {
        let Some(of_products) = of_products else { return Ok(()) };
        let (_, hidden) = inputs.query.matrix();
        let (x, tiles) = match side {
            Side::Queries => (inputs.query.pointer, &plan.query_tiles),
            Side::Keys => (inputs.key, &plan.key_tiles),
        };
        let Sums { parts, count, shape: [rows, columns] } = sums;
        let to = parts.pointer()? + (self.first_column(side, hidden) * Element::F32.bytes()) as u64;
        let mut first = [to, of_products.pointer()?, x].map(Argument::Pointer).to_vec();
        first.push(Argument::Count(u32::from(side == Side::Keys)));
        first.extend([*rows, *columns, tiles.count, SLICE].map(Argument::from));
        let blocks = rows.div_ceil(self.tile(inputs)?) * count;
        let kernel = Kernel { name: "position_gradient", tiles, blocks, tables: (1, 1, 0, 1) };
        self.run(gpu, plan, group, &kernel, inputs, &first)
    }
}

/// The parts of a table's gradient, `(count, rows, columns)` in f32.
struct Sums {
    parts: Buffer,
    count: usize,
    shape: [usize; 2],
}

impl Attention {
    fn batch(&self, hidden: usize) -> Batch<'_> {
        let Self { queries, segments: keys, heads, dropout, .. } = self;
        let scale = 1.0 / ((hidden / heads) as f64).sqrt();
        Batch { queries, keys, heads: *heads, prefix: 0, window: None, scale, dropout: *dropout, distances: None }
    }
}

fn apart<'a>(inputs: &[Array<'a>]) -> Inputs<'a> {
    let [query, key, value] = [inputs[0], inputs[1], inputs[2]];
    Inputs { query, key: key.pointer, value: value.pointer, key_stride: key.matrix().1 }
}

/// A gradient, if it is asked for.
pub(super) fn if_needed(needed: bool, values: Buffer) -> GpuGradient {
    if needed { GpuGradient::Values(values) } else { GpuGradient::None }
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
        let empty = |index: usize| gpu.empty(inputs[index].element, inputs[index].count());
        let (dq, dk, dv) = (empty(0)?, empty(1)?, empty(2)?);
        let upstream = Upstream { output, gradient, logarithms };
        let asked = Needed { query: needed[0], keys: needed[1] || needed[2], table: false };
        let to = To { query: dq.pointer()?, key: dk.pointer()?, value: dv.pointer()? };
        self.batch(inputs[0].matrix().1).backward(gpu, &apart(inputs), &upstream, &asked, &to)?;
        Ok([dq, dk, dv].into_iter().zip(needed).map(|(values, &needed)| if_needed(needed, values)).collect())
    }
}
