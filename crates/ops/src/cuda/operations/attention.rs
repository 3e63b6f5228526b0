//! Attention on a GPU.

mod flash;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, bail};

use self::flash::Flash;
use super::conversion::Converted;
use crate::autograd::Output;
use crate::cuda::{Array, Buffer, Element, Gpu, GpuBackward, GpuGradient, GpuOperation, Grid, Indices, Kernel};
use crate::operations::attention::{Attention, RelativeRows, Terms};
use crate::operations::dropout::Dropout;
use crate::segments::Segments;

/// What the blocks of a batch's attention work on, on the GPU.
struct Plan {
    queries: Segments,
    keys: Segments,
    heads: usize,
    cut: Cut,
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

/// How many queries, and how many keys, make a tile.
#[derive(Clone, Copy, PartialEq)]
struct Cut {
    queries: usize,
    keys: usize,
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
    fn new(gpu: &Gpu, batch: &Batch, cut: Cut) -> Result<Self> {
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
            query_tiles: Tiles::new(gpu, cut.queries, lengths())?,
            key_tiles: Tiles::new(gpu, cut.keys, lengths().map(|(queries, keys)| (keys, queries)))?,
            reach: batch.positions().map(|rows| Reach::new(gpu, rows, queries, keys)).transpose()?,
            queries: queries.clone(),
            keys: keys.clone(),
            heads,
            cut,
        })
    }

    fn is_of(&self, batch: &Batch, cut: Cut) -> bool {
        let Self { queries, keys, heads, .. } = self;
        let is_same = match (&self.reach, batch.positions()) {
            (Some(reach), Some(rows)) => Arc::ptr_eq(&reach.rows.rows, &rows.rows),
            (reach, rows) => reach.is_none() && rows.is_none(),
        };
        is_same && self.cut == cut && *heads == batch.heads && queries == batch.queries && keys == batch.keys
    }
}

/// How many batches' plans are kept: all layers of a pass use one or two.
const PLANS: usize = 4;

impl Gpu {
    /// The plan of a batch, made by its first layer.
    fn with_plan<R>(&self, batch: &Batch, cut: Cut, use_it: impl FnOnce(&Plan) -> Result<R>) -> Result<R> {
        let plans = self.state(|| Ok(Mutex::<Vec<Plan>>::default()))?;
        let mut plans = plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.iter().position(|plan| plan.is_of(batch, cut)) {
            Some(place) => plans.remove(place),
            None => Plan::new(self, batch, cut)?,
        };
        let result = use_it(&plan);
        plans.insert(0, plan);
        plans.truncate(PLANS);
        result
    }
}

/// Attention as the kernels compute it.
struct Batch<'a> {
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
struct Distances<'a> {
    /// The table's row by distance.
    pub rows: &'a RelativeRows,
    pub uploaded: &'a Indices,
    pub table: Array<'a>,
    pub term: Term,
}

/// What a table of distances holds.
#[derive(Clone, Copy, PartialEq)]
enum Term {
    /// A number for each head, in f32.
    Bias,
    /// The positions that queries meet, then those that keys meet, `(rows, hidden)` each, of the type of both.
    Disentangled { to_position: bool, to_content: bool },
}

/// The matrices that are attended with, of one type.
struct Inputs<'a> {
    pub query: Array<'a>, // (queries, hidden)
    /// The addresses of the first key and the first value, and how far it is to the next ones.
    pub key: u64,
    pub value: u64,
    pub key_stride: usize,
}

/// What the forward pass has left, and the gradient of its result.
struct Upstream<'a> {
    pub output: Array<'a>,
    pub gradient: Array<'a>,
    /// Of each query's sum of exponentials, `(heads, queries)`.
    pub logarithms: &'a Buffer,
}

impl<'a> Upstream<'a> {
    /// What kernels of the backward pass take behind those addresses.
    fn after(&self, kernel: Kernel<'a>, first: &[u64], inputs: &Inputs<'a>) -> Kernel<'a> {
        let n = inputs.query.count();
        let kernel = first.iter().fold(kernel, |kernel, &address| kernel.address(address)).read(inputs.query, n);
        let kernel = kernel.address(inputs.key).address(inputs.value).read(self.output, n).read(self.gradient, n);
        kernel.write_f32(self.logarithms, self.logarithms.count())
    }
}

/// Where gradients go: the addresses of those of queries, keys and values, which lie there as what they are gradients of.
struct To {
    pub query: u64,
    pub key: u64,
    pub value: u64,
}

/// Which gradients are asked for. Where others are computed, they are written all the same.
struct Needed {
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

/// What a kernel's blocks work on.
struct Work<'a> {
    tiles: &'a Tiles,
    blocks: usize,
    /// How many tiles a block keeps: of a head's columns, of scores in the numbers' type, of f32 scores, of f32 columns.
    tables: (usize, usize, usize, usize),
}

impl<'a> Work<'a> {
    /// A block for each tile.
    fn on(tiles: &'a Tiles, tables: (usize, usize, usize, usize)) -> Self {
        Self { tiles, blocks: tiles.count, tables }
    }

    /// The bytes of shared memory that a block has for tables of tiles.
    fn shared_memory(&self, element: Element, (width, tile): (usize, usize)) -> usize {
        let padded = |columns: usize, bytes: usize| columns * bytes + 16;
        let (columns, scores, exact_scores, exact_columns) = self.tables;
        tile * (columns * padded(width, element.bytes())
            + scores * padded(tile, element.bytes())
            + exact_scores * padded(tile, 4)
            + exact_columns * padded(width, 4)
            + 2 * 4) // For each distance in a tile of scores, one number.
    }
}

fn pointer(buffer: &Option<Buffer>) -> u64 {
    buffer.as_ref().map_or(0, Buffer::pointer)
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

    /// The kernel of that name for the inputs' heads.
    fn kernel<'k>(&self, name: &str, inputs: &Inputs) -> Result<Kernel<'k>> {
        let element = inputs.query.element;
        Ok(Kernel::of(format!("{name}_{}", shape(element, self.head(inputs))?.0), element))
    }

    /// Runs a kernel, which has those of its arguments that come first, on tiles.
    ///
    /// # Safety
    /// As [`Kernel::launch`], for a kernel of attention.cu whose other arguments are BATCH_PARAMETERS.
    unsafe fn run<'k>(
        &'k self,
        gpu: &Gpu,
        plan: &'k Plan,
        group: &Group,
        inputs: &Inputs,
        work: Work<'k>,
        kernel: Kernel<'k>,
    ) -> Result<()> {
        let element = inputs.query.element;
        let (width, tile) = shape(element, self.head(inputs))?;
        let shared = work.shared_memory(element, (width, tile));
        let grid = Grid { blocks: (work.blocks, group.heads.len()), threads: (2 * tile, 1), shared };
        // SAFETY: as the caller promises.
        unsafe { self.launch(gpu, plan, group, inputs, (work.tiles, grid), kernel) }
    }

    /// Launches a kernel, which has those of its arguments that come first.
    ///
    /// # Safety
    /// As [`Kernel::launch`], for a kernel whose other arguments are BATCH_PARAMETERS of batch.cuh.
    unsafe fn launch<'k>(
        &'k self,
        gpu: &Gpu,
        plan: &'k Plan,
        group: &Group,
        inputs: &Inputs,
        (tiles, grid): (&'k Tiles, Grid),
        kernel: Kernel<'k>,
    ) -> Result<()> {
        let ((queries, hidden), head, longest) = (inputs.query.matrix(), self.head(inputs), self.longest());
        let window = self.window.map_or(longest, |window| window.min(longest));
        let sequences = self.keys.len();
        let kernel = kernel
            .indices(&plan.sequences, 5 * sequences)
            .indices(&tiles.table, 2 * tiles.count)
            .counts([hidden, inputs.key_stride, head, queries, window, self.prefix])
            .float(self.scale as f32)
            .dropout(self.dropout);
        let kernel = match &self.distances {
            Some(distances) => {
                kernel.indices(distances.uploaded, distances.rows.rows.len()).count(distances.rows.longest)
            }
            None => kernel.nothing().count(0),
        };
        let kernel = match &self.distances {
            Some(Distances { table, term: Term::Bias, .. }) => kernel.read_f32(*table, table.count()),
            _ => kernel.nothing(),
        };
        let kernel = match &plan.reach {
            Some(reach) => kernel.indices(&reach.table, 4 * sequences),
            None => kernel.nothing(),
        };
        let (of_queries, of_keys) =
            plan.reach.as_ref().map_or((0, 0), |reach| (reach.query_products, reach.key_products));
        let stride = self.distances.as_ref().map_or(0, |distances| distances.table.matrix().1);
        let kernel = kernel.address(pointer(&group.of_queries)).address(pointer(&group.of_keys)).counts([
            of_queries,
            of_keys,
            stride,
            group.heads.start,
        ]);
        // SAFETY: as the caller promises. The plan is the batch's, and the group's products are as many as it counts.
        unsafe { kernel.launch(gpu, grid) }
    }

    /// The columns of a head.
    fn head(&self, inputs: &Inputs) -> usize {
        inputs.query.matrix().1 / self.heads
    }

    /// The most keys that a sequence has.
    fn longest(&self) -> usize {
        self.keys.ranges().map(|keys| keys.len()).max().unwrap_or(0)
    }

    fn tile(&self, inputs: &Inputs) -> Result<usize> {
        Ok(shape(inputs.query.element, self.head(inputs))?.1)
    }

    fn cut(&self, inputs: &Inputs) -> Result<Cut> {
        let tile = self.tile(inputs)?;
        Ok(Cut { queries: tile, keys: tile })
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
            let kernel = self.kernel("position_products", inputs)?.write_f32(products, products.count()).address(x);
            let kernel = kernel.address(self.table(side, hidden)).count(usize::from(side == Side::Keys));
            // SAFETY: attention.cu, position_products: rows of queries or keys, and the positions that they meet.
            unsafe { self.run(gpu, plan, &group, inputs, Work::on(tiles, (2, 0, 1, 0)), kernel) }?;
        }
        Ok(group)
    }

    /// The result, `(queries, hidden)`, and the logarithm of each query's sum of exponentials, `(heads, queries)`.
    pub(crate) fn forward(&self, gpu: &Gpu, inputs: &Inputs) -> Result<(Buffer, Buffer)> {
        let (query, (queries, _)) = (inputs.query, inputs.query.matrix());
        let output = gpu.empty(query.element, query.count())?;
        let logarithms = gpu.empty(Element::F32, self.heads * queries)?;
        match Flash::of(self, inputs, &[]) {
            Some(flash) => flash.forward(self, gpu, inputs, (&output, &logarithms)),
            None => self.forward_by_tiles(gpu, inputs, (&output, &logarithms)),
        }?;
        Ok((output, logarithms))
    }

    /// A kernel of the forward pass, with what it writes and the inputs.
    fn forward_of<'k>(
        &self,
        kernel: Kernel<'k>,
        inputs: &Inputs<'k>,
        (output, logarithms): (&'k Buffer, &'k Buffer),
    ) -> Kernel<'k> {
        let (query, (queries, _)) = (inputs.query, inputs.query.matrix());
        let kernel = kernel.write(output, query.count()).write_f32(logarithms, self.heads * queries);
        kernel.read(query, query.count()).address(inputs.key).address(inputs.value)
    }

    fn forward_by_tiles(&self, gpu: &Gpu, inputs: &Inputs, (output, logarithms): (&Buffer, &Buffer)) -> Result<()> {
        gpu.with_plan(self, self.cut(inputs)?, |plan| {
            for heads in self.groups(plan) {
                let group = self.group(gpu, plan, inputs, heads)?;
                let kernel = self.kernel("attention_forward", inputs)?;
                let kernel = self.forward_of(kernel, inputs, (output, logarithms));
                // SAFETY: attention.cu, attention_forward: keys and values are those of `Inputs`.
                unsafe { self.run(gpu, plan, &group, inputs, Work::on(&plan.query_tiles, (3, 1, 1, 1)), kernel) }?;
            }
            Ok(())
        })
    }

    /// Writes the gradients of queries, keys and values. The result is that of the table, `(rows, columns)` in f32; of a bias that of
    /// each distance, `(distances, heads)`.
    pub(crate) fn backward(
        &self,
        gpu: &Gpu,
        inputs: &Inputs,
        upstream: &Upstream,
        needed: &Needed,
        to: &To,
    ) -> Result<Option<Buffer>> {
        let others = [upstream.output.pointer, upstream.gradient.pointer, to.query, to.key, to.value];
        match Flash::of(self, inputs, &others) {
            Some(flash) => flash.backward(self, gpu, inputs, upstream, needed, to),
            None => self.backward_by_tiles(gpu, inputs, upstream, needed, to),
        }
    }

    fn backward_by_tiles(
        &self,
        gpu: &Gpu,
        inputs: &Inputs,
        upstream: &Upstream,
        needed: &Needed,
        to: &To,
    ) -> Result<Option<Buffer>> {
        let (_, hidden) = inputs.query.matrix();
        gpu.with_plan(self, self.cut(inputs)?, |plan| {
            let sums = if needed.table { self.table_sums(gpu, plan, plan.query_tiles.count)? } else { None };
            let of_table = sums.as_ref().map_or(0, |sums| sums.parts.pointer());
            let of_distances = if self.positions().is_none() { of_table } else { 0 };
            for heads in self.groups(plan) {
                let group = self.group(gpu, plan, inputs, heads)?;
                let zeros =
                    |side| self.products(plan, side, group.heads.len(), |element, count| gpu.zeros(element, count));
                let (of_queries, of_keys) = (zeros(Side::Queries)?, zeros(Side::Keys)?);
                if needed.query || needed.table {
                    let first = [to.query, of_distances, pointer(&of_queries), self.table(Side::Queries, hidden)];
                    let kernel = upstream.after(self.kernel("attention_queries", inputs)?, &first, inputs);
                    let work = Work::on(&plan.query_tiles, (4, 2, 2, 0));
                    // SAFETY: attention.cu, attention_queries: the gradients are as large as what they are gradients of.
                    unsafe { self.run(gpu, plan, &group, inputs, work, kernel) }?;
                }
                if needed.keys || needed.table && self.meets(Side::Keys) {
                    let first = [to.key, to.value, pointer(&of_keys), self.table(Side::Keys, hidden)];
                    let kernel = upstream.after(self.kernel("attention_keys", inputs)?, &first, inputs);
                    let work = Work::on(&plan.key_tiles, (4, 2, 2, 0));
                    // SAFETY: attention.cu, attention_keys: as above.
                    unsafe { self.run(gpu, plan, &group, inputs, work, kernel) }?;
                }
                let Some(sums) = sums.as_ref().filter(|_| self.positions().is_some()) else { continue };
                self.add_positions(gpu, plan, &group, inputs, sums, (Side::Queries, of_queries.as_ref()))?;
                self.add_positions(gpu, plan, &group, inputs, sums, (Side::Keys, of_keys.as_ref()))?;
            }
            sums.map(|sums| sums.total(gpu)).transpose()
        })
    }

    /// Memory for the parts of the table's gradient, one for each of so many blocks if it is a bias.
    fn table_sums(&self, gpu: &Gpu, plan: &Plan, blocks: usize) -> Result<Option<Sums>> {
        let Some(Distances { rows, table, term, .. }) = &self.distances else { return Ok(None) };
        let (count, shape) = match term {
            Term::Bias => (blocks, [rows.rows.len(), self.heads]),
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
        let to = parts.pointer() + (self.first_column(side, hidden) * Element::F32.bytes()) as u64;
        let kernel = self.kernel("position_gradient", inputs)?.address(to);
        let kernel = kernel.address(of_products.pointer()).address(x);
        let kernel = kernel.count(usize::from(side == Side::Keys)).counts([*rows, *columns, tiles.count, SLICE]);
        let work = Work { tiles, blocks: rows.div_ceil(self.tile(inputs)?) * count, tables: (1, 1, 0, 1) };
        // SAFETY: attention.cu, position_gradient: the sums have a part for each slice of tiles.
        unsafe { self.run(gpu, plan, group, inputs, work, kernel) }
    }
}

/// The parts of a table's gradient, `(count, rows, columns)` in f32.
struct Sums {
    parts: Buffer,
    count: usize,
    shape: [usize; 2],
}

impl Sums {
    fn total(&self, gpu: &Gpu) -> Result<Buffer> {
        let Self { parts, count, shape: [rows, columns] } = self;
        gpu.column_sums(parts.array(&[*count, rows * columns])?)
    }
}

/// A table by distance, on the GPU.
struct Table<'a> {
    rows: &'a RelativeRows,
    uploaded: Arc<Indices>,
    values: Converted<'a>,
    term: Term,
}

impl Attention {
    /// The table, which is the last of the inputs.
    fn table<'a>(&'a self, gpu: &Gpu, inputs: &[Array<'a>]) -> Result<Option<Table<'a>>> {
        let (rows, term, element) = match &self.terms {
            Terms::Content | Terms::Window(_) => return Ok(None),
            Terms::Bias(rows) => (rows, Term::Bias, Element::F32),
            &Terms::Disentangled { ref rows, to_position, to_content } => {
                (rows, Term::Disentangled { to_position, to_content }, inputs[0].element)
            }
        };
        let values = gpu.convert(inputs[inputs.len() - 1], element)?;
        Ok(Some(Table { rows, uploaded: gpu.shared_indices(&rows.rows)?, values, term }))
    }

    fn batch<'a>(&'a self, table: Option<&'a Table>) -> Result<Batch<'a>> {
        let Self { queries, keys, prefix, heads, scale, dropout, .. } = self;
        let window = match self.terms {
            Terms::Window(window) => Some(window),
            _ => None,
        };
        let distances = |table: &'a Table| {
            let Table { rows, uploaded, values, term } = table;
            Ok::<_, candle_core::Error>(Distances { rows, uploaded, table: values.array()?, term: *term })
        };
        Ok(Batch {
            queries,
            keys,
            heads: *heads,
            prefix: *prefix,
            window,
            scale: *scale,
            dropout: *dropout,
            distances: table.map(distances).transpose()?,
        })
    }
}

/// Whether the values stand behind the keys in each row.
fn is_joined(inputs: &[Array]) -> bool {
    inputs[1].matrix().1 == 2 * inputs[0].matrix().1
}

/// The address of the values, which stand behind the keys in each row that begins at that address.
fn behind_key(query: Array, key: u64) -> u64 {
    key + (query.matrix().1 * query.element.bytes()) as u64
}

impl<'a> Inputs<'a> {
    fn new(inputs: &[Array<'a>]) -> Self {
        let [query, key] = [inputs[0], inputs[1]];
        let value = if is_joined(inputs) { behind_key(query, key.pointer) } else { inputs[2].pointer };
        Self { query, key: key.pointer, value, key_stride: key.matrix().1 }
    }
}

/// A gradient, if it is asked for.
fn if_needed(needed: bool, values: Buffer) -> GpuGradient {
    if needed { GpuGradient::Values(values) } else { GpuGradient::None }
}

impl GpuOperation for Attention {
    fn reads_output(&self) -> bool {
        true
    }

    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        let table = self.table(gpu, inputs)?;
        let (output, logarithms) = self.batch(table.as_ref())?.forward(gpu, &Inputs::new(inputs))?;
        Ok(Output::new(output, inputs[0].shape.to_vec()).saving(logarithms))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let &GpuBackward { inputs, needed, gradient, .. } = &pass;
        let table = self.table(gpu, inputs)?;
        let matrices = if is_joined(inputs) { 2 } else { 3 };
        let memory = inputs[..matrices].iter().map(|input| gpu.empty(input.element, input.count()));
        let memory = memory.collect::<Result<Vec<_>>>()?;
        let key = memory[1].pointer();
        let value = if is_joined(inputs) { behind_key(inputs[0], key) } else { memory[2].pointer() };
        let to = To { query: memory[0].pointer(), key, value };
        let of_keys = needed[1..matrices].contains(&true);
        let asked = Needed { query: needed[0], keys: of_keys, table: needed.get(matrices) == Some(&true) };
        let upstream = Upstream { output: pass.output()?, gradient, logarithms: pass.saved()? };
        let of_table = self.batch(table.as_ref())?.backward(gpu, &Inputs::new(inputs), &upstream, &asked, &to)?;
        let mut gradients: Vec<_> =
            memory.into_iter().zip(needed).map(|(values, &needed)| if_needed(needed, values)).collect();
        if let (Some(&values), Some(table)) = (inputs.get(matrices), table) {
            gradients.push(match of_table {
                None => GpuGradient::None,
                Some(of_distances) if table.term == Term::Bias => {
                    let looked_up: Vec<u32> = table.rows.rows.iter().map(|&row| row as u32).collect();
                    gpu.table_gradient(values, &looked_up, of_distances.array(&[looked_up.len(), self.heads])?)?
                }
                Some(of_rows) => gpu.of_type(of_rows, values)?,
            });
        }
        Ok(gradients)
    }
}
