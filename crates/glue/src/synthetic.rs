//! A small task in GLUE's format from templates, for where there is no GLUE. Its scores are no benchmark's.

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::task::Split;

/// Things that can be said in two ways: each row holds words of one meaning.
const SUBJECTS: &[[&str; 2]] = &[
    ["The doctor", "The physician"],
    ["A child", "A kid"],
    ["The lawyer", "The attorney"],
    ["My mother", "My mom"],
    ["The car dealer", "The auto seller"],
    ["A police officer", "A cop"],
    ["The teacher", "The instructor"],
    ["The film director", "The movie director"],
];
const VERBS: &[[&str; 2]] = &[
    ["bought", "purchased"],
    ["fixed", "repaired"],
    ["sold", "got rid of"],
    ["found", "discovered"],
    ["painted", "coloured"],
    ["destroyed", "wrecked"],
    ["borrowed", "took on loan"],
    ["described", "gave an account of"],
];
const OBJECTS: &[[&str; 2]] = &[
    ["the old house", "the aged home"],
    ["a small boat", "a little boat"],
    ["the broken phone", "the damaged telephone"],
    ["an expensive sofa", "a costly couch"],
    ["the red bicycle", "the red bike"],
    ["a strange picture", "an odd image"],
    ["the heavy rock", "the weighty stone"],
    ["a fast computer", "a quick computer"],
];
const TIMES: &[[&str; 2]] = &[
    ["yesterday", "the day before today"],
    ["last autumn", "last fall"],
    ["at noon", "in the middle of the day"],
    ["a long time ago", "many years ago"],
    ["this morning", "early today"],
    ["on the weekend", "on Saturday or Sunday"],
];
const SLOTS: [&[[&str; 2]]; 4] = [SUBJECTS, VERBS, OBJECTS, TIMES];

/// The split's file. Half of the pairs say the same in other words; in the other half one or two of the four parts differ in
/// meaning.
pub(crate) fn text(split: Split) -> String {
    let (rows, seed, labeled) = match split {
        Split::Train => (800, 1, true),
        Split::Validation | Split::ValidationMismatched => (200, 2, true),
        Split::Test | Split::TestMismatched => (200, 3, false),
    };
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut text =
        String::from(if labeled { "index\tsentence1\tsentence2\tlabel\n" } else { "index\tsentence1\tsentence2\n" });
    let mut labels: Vec<usize> = (0..rows).map(|row| row % 2).collect();
    labels.shuffle(&mut generator);
    for (index, label) in labels.into_iter().enumerate() {
        let first = SLOTS.map(|slot| generator.random_range(0..slot.len()));
        let mut second = first;
        if label == 0 {
            let changes = generator.random_range(1..=2);
            let mut slots = [0, 1, 2, 3];
            slots.shuffle(&mut generator);
            for &slot in &slots[..changes] {
                let others: Vec<usize> = (0..SLOTS[slot].len()).filter(|&row| row != first[slot]).collect();
                second[slot] = others.choose(&mut generator).copied().unwrap_or(first[slot]);
            }
        }
        let mut sentence = |rows: [usize; 4]| {
            let words: Vec<&str> =
                rows.iter().zip(SLOTS).map(|(&row, slot)| slot[row][generator.random_range(0..2)]).collect();
            format!("{}.", words.join(" "))
        };
        let (first, second) = (sentence(first), sentence(second));
        text += &format!("{index}\t{first}\t{second}");
        text += &if labeled { format!("\t{label}\n") } else { "\n".to_string() };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Glue, Targets, Task};

    #[test]
    fn the_synthetic_task_reads_as_any_other_and_is_balanced_and_reproducible() {
        let glue = Glue::synthetic("test");
        let train = glue.load(Task::Synthetic, Split::Train).unwrap();
        let Some(Targets::Classes(labels)) = train.targets().unwrap() else { panic!("no labels") };
        assert_eq!((train.len(), labels.iter().sum::<usize>()), (800, 400));
        assert!(glue.load(Task::Synthetic, Split::Test).unwrap().targets().unwrap().is_none());
        assert_eq!(text(Split::Train), text(Split::Train));
    }
}
