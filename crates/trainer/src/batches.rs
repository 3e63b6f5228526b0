//! Which examples make up each step of an epoch.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// The batches of one epoch, as indices of examples: all examples once, in an order that follows from seed and epoch.
///
/// With `group_by_length` as transformers' `LengthGroupedSampler`: shuffled, cut into pieces of up to 50 batches, each piece
/// sorted by length, and the batch with the longest example first, so that a lack of memory shows at once; the other
/// batches in random order.
pub fn epoch_batches(
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
    let piece = (lengths.len() / (batch_size * 4)).clamp(1, 50) * batch_size;
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
        assert_eq!(epoch_batches(&[3, 4], 16, true, 1, 0).len(), 1);
        assert!(epoch_batches(&[], 16, true, 1, 0).is_empty());
    }
}
