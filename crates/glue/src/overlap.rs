//! What the words that a validation set shares with its training set say about its labels.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::dataset::{Dataset, Example};
use crate::error::{Error, Result};
use crate::location::Glue;
use crate::metrics::{Targets, accuracy, majority};
use crate::task::{Split, Task};

/// How well answers without a model do on a task's first validation split. Each number is a share, from 0 to 1.
///
/// WNLI is why it is here: most of its validation pairs have a twin in the training set, the same first sentence with the other
/// candidate for its pronoun, so mostly the opposite label. What remembers the training set is then wrong more often than right.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Overlap {
    /// The accuracy of the training set's most frequent class; of equally frequent classes, the lowest.
    pub majority: f64,
    /// The accuracy of the label of the nearest training example. Nearness is the Jaccard similarity of the words of all
    /// sentences of an example as multisets: the sum over words of the smaller of the two counts, divided by that of the larger.
    /// A word is a run of letters and digits, in lower case. Of equally near examples the first in the file counts.
    pub nearest_neighbor: f64,
    /// The accuracy of the opposite of that label; none when there are more than two classes. It tells how the pairs were parted
    /// into the two sets, not how they are understood, and does not carry over to WNLI's test set: of its 146 first sentences 8 are
    /// in the training set.
    pub inverted_nearest_neighbor: Option<f64>,
    /// The share of validation examples whose first sentence is, character by character, that of a training example.
    pub shared_first_sentence: f64,
    /// Of the pairs of a validation and a training example with the same first sentence, the share with different labels; none
    /// when there is no such pair.
    pub opposite_label: Option<f64>,
}

/// Pairs of examples that can be compared within about a minute: all of a task but QQP's and MNLI's, and of a whole QNLI's.
const MOST_PAIRS: usize = 100_000_000;

impl Overlap {
    /// Compares each example of a task's first validation split with each training example.
    ///
    /// # Errors
    /// When one of the two sets is missing or broken, the task has scores for labels (STS-B), or the numbers of examples multiplied are
    /// more than 100,000,000 (those of QQP and MNLI, and of QNLI where its training set is whole).
    pub fn of(glue: &Glue, task: Task) -> Result<Self> {
        let (train, validation) = (glue.load(task, Split::Train)?, glue.load(task, Split::Validation)?);
        let pairs = train.len() * validation.len();
        if pairs > MOST_PAIRS {
            return Err(Error::TooManyPairs { task: task.name(), limit: MOST_PAIRS, found: pairs });
        }
        let (train_labels, gold) = (classes(&train)?, classes(&validation)?);
        let (train, validation) = (train.examples()?, validation.examples()?);

        let nearest: Vec<usize> = nearest(&train, &validation).into_iter().map(|index| train_labels[index]).collect();
        let inverted = (task.num_labels() == 2).then(|| nearest.iter().map(|label| 1 - label).collect::<Vec<_>>());

        let mut by_first_sentence: HashMap<&str, Vec<usize>> = HashMap::new();
        for (example, &label) in train.iter().zip(&train_labels) {
            by_first_sentence.entry(&example.first).or_default().push(label);
        }
        let (mut shared, mut twins, mut opposite) = (0, 0, 0);
        for (example, label) in validation.iter().zip(&gold) {
            let Some(labels) = by_first_sentence.get(example.first.as_str()) else { continue };
            shared += 1;
            twins += labels.len();
            opposite += labels.iter().filter(|&other| other != label).count();
        }

        Ok(Self {
            majority: accuracy(&vec![majority(&train_labels); gold.len()], &gold),
            nearest_neighbor: accuracy(&nearest, &gold),
            inverted_nearest_neighbor: inverted.map(|inverted| accuracy(&inverted, &gold)),
            shared_first_sentence: shared as f64 / gold.len() as f64,
            opposite_label: (twins > 0).then(|| opposite as f64 / twins as f64),
        })
    }

    /// How many examples of a split have a first sentence that is, character by character, that of a training example; and how many
    /// examples there are.
    ///
    /// # Errors
    /// When one of the two sets is missing or broken.
    pub fn shared_first_sentences(glue: &Glue, task: Task, split: Split) -> Result<(usize, usize)> {
        let (train, examples) = (glue.load(task, Split::Train)?.examples()?, glue.load(task, split)?.examples()?);
        let known: HashSet<&str> = train.iter().map(|example| example.first.as_str()).collect();
        let shared = examples.iter().filter(|example| known.contains(example.first.as_str())).count();
        Ok((shared, examples.len()))
    }
}

fn classes(dataset: &Dataset) -> Result<Vec<usize>> {
    let found = match dataset.targets()? {
        Some(Targets::Classes(ids)) => return Ok(ids),
        Some(Targets::Values(_)) => "scores",
        None => "none",
    };
    Err(Error::NoLabels {
        task: dataset.task.name(),
        split: dataset.split.to_string(),
        expected: "labels that are classes",
        found,
    })
}

/// For each of `examples` the first of those in `train` that are nearest to it.
fn nearest(train: &[Example], examples: &[Example]) -> Vec<usize> {
    let mut ids = HashMap::new();
    let train: Vec<Vec<usize>> = train.iter().map(|example| words(example, &mut ids)).collect();
    let nearest_to = |example: &Example| {
        let example = words(example, &mut ids);
        let (mut nearest, mut highest) = (0, f64::NEG_INFINITY);
        for (index, other) in train.iter().enumerate() {
            let similarity = similarity(&example, other);
            if similarity > highest {
                (nearest, highest) = (index, similarity);
            }
        }
        nearest
    };
    examples.iter().map(nearest_to).collect()
}

/// The words of an example's sentences as numbers, in ascending order.
fn words(example: &Example, ids: &mut HashMap<String, usize>) -> Vec<usize> {
    let sentences = std::iter::once(&example.first).chain(&example.second);
    let texts: Vec<String> = sentences.map(|sentence| sentence.to_lowercase()).collect();
    let words = texts.iter().flat_map(|text| text.split(|character: char| !character.is_alphanumeric()));
    let mut words: Vec<usize> = words
        .filter(|word| !word.is_empty())
        .map(|word| {
            let next = ids.len();
            *ids.entry(word.to_string()).or_insert(next)
        })
        .collect();
    words.sort_unstable();
    words
}

/// The Jaccard similarity of two multisets, each in ascending order; 0 when both are empty.
fn similarity(a: &[usize], b: &[usize]) -> f64 {
    let (mut i, mut j, mut common) = (0, 0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        let order = x.cmp(y);
        common += usize::from(order == Ordering::Equal);
        i += usize::from(order != Ordering::Greater);
        j += usize::from(order != Ordering::Less);
    }
    common as f64 / (a.len() + b.len() - common).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(first: &str, second: &str) -> Example {
        Example { first: first.into(), second: Some(second.into()) }
    }

    fn folder(task: &str, train: &str, validation: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join(task);
        std::fs::create_dir(&place).unwrap();
        for (file, rows) in [("train.tsv", train), ("dev.tsv", validation)] {
            std::fs::write(place.join(file), format!("index\tsentence1\tsentence2\tlabel\n{rows}")).unwrap();
        }
        folder
    }

    #[test]
    fn similarity_counts_a_word_as_often_as_both_have_it() {
        let mut ids = HashMap::new();
        let a = words(&example("The cat, the CAT!", "a dog"), &mut ids);
        let b = words(&example("the cat", "The bird's"), &mut ids);
        // the cat the cat a dog, the cat the bird s: the smaller counts are the 2, cat 1; the larger the 2, cat 2, a dog bird s.
        assert_eq!(similarity(&a, &b), 3.0 / 8.0);
        assert_eq!([similarity(&a, &a), similarity(&a, &[]), similarity(&[], &[])], [1.0, 0.0, 0.0]);
    }

    #[test]
    fn of_equally_near_examples_the_first_counts() {
        let train = [example("x", "y"), example("a", "b"), example("b", "a")];
        assert_eq!(nearest(&train, &[example("A b", "."), example("q", "r")]), [1, 0]);
    }

    #[test]
    fn a_small_set_gives_the_numbers_counted_by_hand() {
        // The first validation pair has one twin, of the other label; the second has two, and the nearer has its label; the third
        // has none, and of all training examples only the first has a word of it.
        let folder = folder(
            "WNLI",
            "0\tJohn saw Bill.\tJohn ran.\t0\n1\tAnn met Sue.\tAnn sang.\t1\n2\tAnn met Sue.\tSue sang.\t0\n",
            "0\tJohn saw Bill.\tBill ran.\t1\n1\tAnn met Sue.\tThen Sue sang.\t0\n2\tNobody came.\tOne ran.\t0\n",
        );
        let glue = Glue::at(folder.path()).unwrap();
        let overlap = Overlap::of(&glue, Task::Wnli).unwrap();
        let expected = Overlap {
            majority: 2.0 / 3.0,
            nearest_neighbor: 2.0 / 3.0,
            inverted_nearest_neighbor: Some(1.0 / 3.0),
            shared_first_sentence: 2.0 / 3.0,
            opposite_label: Some(2.0 / 3.0),
        };
        assert_eq!(overlap, expected);
        assert_eq!(Overlap::shared_first_sentences(&glue, Task::Wnli, Split::Validation).unwrap(), (2, 3));
    }

    #[test]
    fn without_a_shared_sentence_there_is_no_share_of_opposite_labels() {
        let folder = folder("RTE", "0\ta\tb\tentailment\n", "0\tc\td\tentailment\n");
        let overlap = Overlap::of(&Glue::at(folder.path()).unwrap(), Task::Rte).unwrap();
        assert_eq!((overlap.shared_first_sentence, overlap.opposite_label), (0.0, None));
    }

    #[test]
    fn a_task_of_scores_is_refused_and_so_are_sets_that_are_too_large() {
        let scores = tempfile::tempdir().unwrap();
        std::fs::create_dir(scores.path().join("STS-B")).unwrap();
        for file in ["train.tsv", "dev.tsv"] {
            std::fs::write(scores.path().join("STS-B").join(file), "sentence1\tsentence2\tscore\na\tb\t1\n").unwrap();
        }
        let error = Overlap::of(&Glue::at(scores.path()).unwrap(), Task::StsB).unwrap_err().to_string();
        assert!(error.contains("STS-B, train: expected labels that are classes, found scores"), "{error}");
        let rows: String = (0..10_001).map(|row| format!("{row}\ta\tb\tentailment\n")).collect();
        let large = folder("QNLI", "", "");
        let text = format!("index\tquestion\tsentence\tlabel\n{rows}");
        for file in ["train.tsv", "dev.tsv"] {
            std::fs::write(large.path().join("QNLI").join(file), &text).unwrap();
        }
        let error = Overlap::of(&Glue::at(large.path()).unwrap(), Task::Qnli).unwrap_err().to_string();
        assert!(error.contains("QNLI") && error.contains("100000000") && error.contains("100020001"), "{error}");
    }
}
