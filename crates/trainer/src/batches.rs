//! The batches of a run: examples shuffled anew for each epoch, all by the run's seed.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::data::Labeled;
use crate::error::Result;
use crate::run::Run;
use crate::training::step::Shard;

/// The batch of each step of a run.
pub(crate) struct RunBatches<'a> {
    run: &'a Run,
    examples: &'a Labeled,
    lengths: Vec<usize>,
    /// The epoch that is under way, and its batches.
    epoch: Option<(usize, Vec<Vec<usize>>)>,
}

impl<'a> RunBatches<'a> {
    pub(crate) fn new(run: &'a Run, examples: &'a Labeled) -> Self {
        Self { run, examples, lengths: examples.lengths(), epoch: None }
    }

    pub(crate) fn steps_per_epoch(&self) -> usize {
        self.run.settings.steps_per_epoch(self.lengths.len())
    }

    /// The batch of a step, counted from 0.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub(crate) fn get(&mut self, step: usize) -> Result<Shard> {
        let (settings, seed) = (&self.run.settings, self.run.seed);
        let (epoch, index) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        let batches = match self.epoch.take() {
            Some((same, batches)) if same == epoch => batches,
            _ => epoch_batches(&self.lengths, settings.batch_size.max(1), settings.group_by_length, seed, epoch),
        };
        let (_, batches) = self.epoch.insert((epoch, batches));
        let (batch, targets) = self.examples.batch(&batches[index])?;
        Ok(Shard::whole(batch, targets, step_seed(seed, step)))
    }
}

/// The seed of a step's dropout. The steps are 2^20 apart: the parts that a batch may be taken in add the number of the sequences before
/// them. The factor, 2^64 divided by the golden ratio, spreads the runs' small seeds over all bits.
fn step_seed(run_seed: u64, step: usize) -> u64 {
    run_seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((step as u64) << 20)
}

/// The batches of one epoch, as indices of examples: all examples once, in an order that follows from seed and epoch.
///
/// With `group_by_length` as transformers' `LengthGroupedSampler`: shuffled, cut into pieces of up to 50 batches, each piece
/// sorted by length, and the batch with the longest example first, so that a lack of memory shows at once; the other
/// batches in random order.
fn epoch_batches(
    lengths: &[usize],
    batch_size: usize,
    group_by_length: bool,
    seed: u64,
    epoch: usize,
) -> Vec<Vec<usize>> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(epoch as u64);
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.shuffle(&mut generator);
    if !group_by_length {
        return order.chunks(batch_size).map(<[usize]>::to_vec).collect();
    }
    let piece = (lengths.len() / batch_size.saturating_mul(4)).clamp(1, 50).saturating_mul(batch_size);
    for piece in order.chunks_mut(piece) {
        piece.sort_by_key(|&index| std::cmp::Reverse(lengths[index]));
    }
    let mut batches: Vec<Vec<usize>> = order.chunks(batch_size).map(<[usize]>::to_vec).collect();
    let longest = |batch: &Vec<usize>| batch.iter().map(|&index| lengths[index]).max();
    if let Some(first) = (0..batches.len()).max_by_key(|&i| (longest(&batches[i]), std::cmp::Reverse(i))) {
        batches.swap(0, first);
        batches[1..].shuffle(&mut generator);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::epoch_batches;

    fn lengths(count: usize) -> Vec<usize> {
        (0..count).map(|i| 5 + (i * 7919) % 97).collect()
    }

    #[test]
    fn every_example_comes_once_and_only_the_last_batch_is_short_without_grouping() {
        let batches = epoch_batches(&lengths(1003), 16, false, 1, 0);
        let mut seen: Vec<usize> = batches.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..1003).collect::<Vec<_>>());
        assert!(batches[..batches.len() - 1].iter().all(|batch| batch.len() == 16));
    }

    #[test]
    fn seed_and_epoch_change_the_order_and_the_same_ones_repeat_it() {
        let of = |seed, epoch| epoch_batches(&lengths(100), 8, true, seed, epoch);
        assert_eq!(of(1, 0), of(1, 0));
        assert_ne!(of(1, 0), of(2, 0));
        assert_ne!(of(1, 0), of(1, 1));
    }

    #[test]
    fn grouped_batches_hold_like_lengths_and_the_longest_example_comes_first() {
        let lengths = lengths(3200);
        let batches = epoch_batches(&lengths, 16, true, 3, 0);
        let spread = |batches: &[Vec<usize>]| {
            let padded: usize = batches.iter().map(|b| b.len() * b.iter().map(|&i| lengths[i]).max().unwrap()).sum();
            padded as f64 / lengths.iter().sum::<usize>() as f64
        };
        assert!(spread(&batches) < 1.05, "grouped: {}", spread(&batches));
        assert!(spread(&epoch_batches(&lengths, 16, false, 3, 0)) > 1.5);
        assert!(batches[0].iter().any(|&i| lengths[i] == *lengths.iter().max().unwrap()));
        let mut seen = batches.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..3200).collect::<Vec<_>>());
    }

    #[test]
    fn fewer_examples_than_a_batch_make_one_batch() {
        for batch_size in [usize::MAX, 1 << 62] {
            assert_eq!(epoch_batches(&lengths(100), batch_size, true, 1, 0).len(), 1);
        }
        assert_eq!(epoch_batches(&[3, 4], 16, true, 1, 0).len(), 1);
        assert!(epoch_batches(&[], 16, true, 1, 0).is_empty());
    }
}
