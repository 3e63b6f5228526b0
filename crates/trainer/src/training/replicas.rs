//! Data parallelism over several GPUs: each has a replica of the model and the optimizer, computes the gradients of a shard of every
//! batch, and takes the same step with the sum of all gradients (all-reduce by NCCL), so that all stay equal to the bit.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use candle_core::{DType, Device, Tensor};
#[cfg(feature = "cuda")]
use ops::Communicators;
use ops::Gradients;
use peft::Model;

use crate::checkpoint::{self, CheckpointFile};
use crate::device;
use crate::error::{Error, Result};
use crate::run::Settings;
use crate::training::step::{Learner, Shard, Update};

/// The models of a run that are on other cards than its own, which is the first of all. Each is a thread's.
///
/// Every card computes its gradients before any begins to add them up: what fails until then, such as for lack of memory, fails
/// while nobody waits for anybody. What fails later ends the waiting of all cards, and is told by [`Replicas::wait`].
#[derive(Default)]
pub(crate) struct Replicas {
    others: Vec<Worker>,
    /// None where there are no others.
    communicators: Option<Arc<Communicators>>,
}

impl Replicas {
    /// Makes `others` equal to the learner's model, and their optimizers as the checkpoint says, if there is one.
    ///
    /// # Errors
    /// When cards cannot be connected, for which they need NVIDIA's library NCCL, or the checkpoint is broken.
    pub(crate) fn start(
        learner: &Learner,
        others: Vec<Model>,
        settings: &Settings,
        checkpoint: Option<&CheckpointFile>,
    ) -> Result<Self> {
        let model = &learner.model;
        if others.is_empty() {
            return Ok(Self::default());
        }
        let devices: Vec<Device> = [model].into_iter().chain(&others).map(|model| model.device().clone()).collect();
        let communicators = Arc::new(Communicators::new(&devices)?);
        let mut workers = Vec::new();
        for (index, other) in others.into_iter().enumerate() {
            checkpoint::copy_parameters(model.parameters(), other.parameters())?;
            let mut learner = Learner::new(other, settings)?;
            if let Some(file) = checkpoint {
                file.load(&mut learner.optimizer)?;
            }
            let replica = Replica { rank: 1 + index, learner, communicators: communicators.clone() };
            workers.push(Worker::start(replica));
        }
        Ok(Self { others: workers, communicators: Some(communicators) })
    }

    /// Takes the step of a batch, as [`Learner::step`]; on several cards the loss is there on the first when all have come to it.
    ///
    /// Each card has its shard of the sequences, and dropout of its own on them. Cards are not asked for more than memory holds: each
    /// cuts its shard into parts if it must.
    ///
    /// # Errors
    /// The first card's that failed. When memory does not suffice for one sequence, no card has taken the step.
    pub(crate) fn step(
        &self,
        learner: &mut Learner,
        batch: &Shard,
        step: Update,
        part_tokens: &mut Option<usize>,
    ) -> Result<Tensor> {
        let Some(communicators) = &self.communicators else {
            return learner.step(batch, step, part_tokens);
        };
        let mut computed = self.gradients(learner, batch, part_tokens)?;
        // From here on a card that does not go on would leave the others waiting.
        let asked: Result<()> = self.others.iter().try_for_each(|worker| worker.ask(Request::Update(step)));
        let updated = asked.and_then(|()| update(communicators, 0, learner, &mut computed, step));
        updated.or_else(|error| {
            if communicators.abort() {
                return Err(on(learner.model.device(), error));
            }
            self.wait(&learner.model).and(Err(error)) // Another card was the first to fail, and knows why.
        })
    }

    /// The first card's part of a step, when every card has computed its own.
    fn gradients(&self, learner: &Learner, batch: &Shard, part_tokens: &mut Option<usize>) -> Result<Computed> {
        let mut shards = split(batch, 1 + self.others.len())?.into_iter();
        let own = shards.next().flatten();
        let asked: Vec<Result<()>> = self
            .others
            .iter()
            .zip(shards)
            .map(|(worker, shard)| worker.ask(Request::Gradients(shard, *part_tokens)))
            .collect();
        let mut least = *part_tokens;
        let computed = compute(learner, own.as_ref(), &mut least);
        let reports = self.answers(asked);
        let computed = computed.map_err(|error| on(learner.model.device(), error))?;
        for report in reports {
            least = [least, report?].into_iter().flatten().min();
        }
        *part_tokens = least;
        Ok(computed)
    }

    /// Waits until every card is done with all steps so far.
    ///
    /// # Errors
    /// The first card's that failed in one of them.
    pub(crate) fn wait(&self, model: &Model) -> Result<()> {
        let Some(communicators) = &self.communicators else { return Ok(()) };
        let asked: Vec<Result<()>> = self.others.iter().map(|worker| worker.ask(Request::Wait)).collect();
        let own = synchronize(model.device(), communicators);
        let others = self.answers(asked).into_iter().map(|report| report.map(drop));
        [own].into_iter().chain(others).collect()
    }

    /// What each of the others answers to what it was asked, once all have.
    fn answers(&self, asked: Vec<Result<()>>) -> Vec<Report> {
        self.others.iter().zip(asked).map(|(worker, asked)| asked.and_then(|()| worker.answer())).collect()
    }
}

/// What the first card asks of another.
enum Request {
    /// The gradients of its shard of a step, if it has one, in parts of so many tokens.
    Gradients(Option<Shard>, Option<usize>),
    /// The step with the sum of what all cards have computed. It is not answered.
    Update(Update),
    /// To be done with all that was asked before.
    Wait,
}

/// How many tokens a card takes at once.
type Report = Result<Option<usize>>;

/// A card's thread, as the first card sees it.
struct Worker {
    device: String,
    /// None when there is nothing more to ask.
    requests: Option<Sender<Request>>,
    reports: Receiver<Report>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(replica: Replica) -> Self {
        let (requests, asked) = channel();
        let (answer, reports) = channel();
        let device = device::name(replica.learner.model.device());
        let thread = thread::spawn(move || replica.serve(&asked, &answer));
        Self { device, requests: Some(requests), reports, thread: Some(thread) }
    }

    fn ask(&self, request: Request) -> Result<()> {
        let sent = self.requests.as_ref().map(|requests| requests.send(request));
        if matches!(sent, Some(Ok(()))) { Ok(()) } else { Err(self.gone()) }
    }

    fn answer(&self) -> Report {
        self.reports.recv().unwrap_or_else(|_| Err(self.gone()))
    }

    fn gone(&self) -> Error {
        let source = candle_core::Error::Msg("its thread has ended; this is a bug, please report it".into());
        Error::OnDevice { device: self.device.clone(), source: Box::new(source.into()) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.requests = None; // That ends the thread.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a worker has.
struct Replica {
    rank: usize,
    learner: Learner,
    communicators: Arc<Communicators>,
}

/// A thread that panics is not waited for.
impl Drop for Replica {
    fn drop(&mut self) {
        if thread::panicking() {
            self.communicators.abort();
        }
    }
}

impl Replica {
    /// Does what it is asked for until nobody asks any more.
    fn serve(mut self, requests: &Receiver<Request>, reports: &Sender<Report>) {
        let mut computed = None;
        let mut failed = Ok(()); // Of the step before: told by the next answer.
        while let Ok(request) = requests.recv() {
            let device = self.learner.model.device().clone();
            let report = match request {
                Request::Gradients(shard, mut part_tokens) => {
                    let found = std::mem::replace(&mut failed, Ok(()))
                        .and_then(|()| compute(&self.learner, shard.as_ref(), &mut part_tokens));
                    found.map(|found| {
                        computed = Some(found);
                        part_tokens
                    })
                }
                Request::Update(step) => {
                    let Self { rank, learner, communicators } = &mut self;
                    let updated =
                        computed.take().map(|mut computed| update(communicators, *rank, learner, &mut computed, step));
                    if let Some(Err(error)) = updated
                        && communicators.abort()
                    {
                        failed = Err(error); // The first to fail knows why.
                    }
                    continue;
                }
                Request::Wait => {
                    let done = synchronize(&device, &self.communicators);
                    std::mem::replace(&mut failed, Ok(())).and(done).map(|()| None)
                }
            };
            if reports.send(report.map_err(|error| on(&device, error))).is_err() {
                return;
            }
        }
    }
}

/// A batch in one shard for each card, by whole sequences; none where there are fewer sequences than cards.
fn split(batch: &Shard, cards: usize) -> Result<Vec<Option<Shard>>> {
    let lengths: Vec<usize> = batch.batch.segments.ranges().map(|rows| rows.len()).collect();
    let mut before = 0;
    let mut shards = Vec::new();
    for (card, places) in assign(&lengths, cards).into_iter().enumerate() {
        if places.is_empty() && card > 0 {
            shards.push(None);
            continue;
        }
        let rows: Vec<u32> = places.iter().map(|&place| place as u32).collect();
        shards.push(Some(Shard {
            batch: batch.batch.select(&places)?,
            targets: batch.targets.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?,
            // Dropout of a batch's parts is told apart by how many sequences are before them, as in `Learner::gradients`.
            seed: batch.seed.wrapping_add(before),
            weight: places.len() as f64 / lengths.len() as f64,
        }));
        before += places.len() as u64;
    }
    Ok(shards)
}

/// Which sequences each card has, in their order: the longest first, each to the card that has the fewest tokens by then.
fn assign(lengths: &[usize], cards: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&place| std::cmp::Reverse(lengths[place]));
    let mut assigned = vec![(0, Vec::new()); cards]; // tokens, sequences
    for place in order {
        if let Some((tokens, sequences)) = assigned.iter_mut().min_by_key(|(tokens, _)| *tokens) {
            *tokens += lengths[place];
            sequences.push(place);
        }
    }
    let sorted = |(_, mut sequences): (usize, Vec<usize>)| {
        sequences.sort_unstable();
        sequences
    };
    assigned.into_iter().map(sorted).collect()
}

/// What a card adds to a step.
struct Computed {
    loss: Tensor,           // ()
    gradients: Vec<Tensor>, // in the order of the optimizer's parameters
}

/// What a card's shard of a batch adds to the step; without one, zeros.
fn compute(learner: &Learner, shard: Option<&Shard>, part_tokens: &mut Option<usize>) -> Result<Computed> {
    let slots = &learner.optimizer.slots;
    let Some(shard) = shard else {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, learner.model.device());
        let gradients = slots.iter().map(|slot| zeros(slot.variable.dims()));
        return Ok(Computed { loss: zeros(&[])?, gradients: gradients.collect::<candle_core::Result<_>>()? });
    };
    let (loss, found) = learner.gradients(shard, part_tokens)?;
    let gradients = slots.iter().map(|slot| slot.gradient(&found).cloned()).collect::<Result<_>>()?;
    Ok(Computed { loss, gradients })
}

/// Adds up what all cards have computed, and takes the step; the loss of the whole batch.
fn update(
    communicators: &Communicators,
    rank: usize,
    learner: &mut Learner,
    Computed { loss, gradients }: &mut Computed,
    step: Update,
) -> Result<Tensor> {
    communicators.sum(rank, [&mut *loss].into_iter().chain(&mut *gradients))?;
    let parameters = learner.optimizer.slots.iter().map(|slot| slot.variable.as_tensor());
    let sums = Gradients::of(parameters.zip(gradients.iter().cloned()));
    learner.optimizer.step(&sums, loss, step)?;
    Ok(loss.clone())
}

/// Waits for a card. If it fails, the others wait for it no longer.
fn synchronize(device: &Device, communicators: &Communicators) -> Result<()> {
    device.synchronize().map_err(|error| {
        communicators.abort();
        on(device, error.into())
    })
}

/// An error with the device that it is of; a lack of memory names it already.
fn on(device: &Device, error: Error) -> Error {
    match error {
        named @ (Error::OutOfMemory { .. } | Error::OnDevice { .. }) => named,
        other => Error::OnDevice { device: device::name(device), source: Box::new(other) },
    }
}

/// Without CUDA there is one device, which needs none.
#[cfg(not(feature = "cuda"))]
enum Communicators {}

#[cfg(not(feature = "cuda"))]
impl Communicators {
    fn new(_devices: &[Device]) -> Result<Self> {
        let expected = "one, since this was built without CUDA; build it with the feature `cuda` (`make cuda`)";
        Err(Error::Setting { name: "device", found: "several".into(), expected: expected.into() })
    }

    fn sum<'a>(&self, _rank: usize, _tensors: impl IntoIterator<Item = &'a mut Tensor>) -> Result<()> {
        match *self {}
    }

    fn abort(&self) -> bool {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::assign;

    #[test]
    fn sequences_are_assigned_by_tokens_and_each_card_has_them_in_the_order_of_the_batch() {
        assert_eq!(assign(&[5, 9, 2, 7, 4], 2), [vec![1, 4], vec![0, 2, 3]]);
        assert_eq!(assign(&[3, 3, 3, 3], 2), [vec![0, 2], vec![1, 3]]);
        assert_eq!(assign(&[8, 1, 1, 1, 1], 2), [vec![0], vec![1, 2, 3, 4]]);
        assert_eq!(assign(&[2, 6], 3), [vec![1], vec![0], vec![]]);
    }
}
