//! What there is to judge two methods by: scores over seeds, predictions of single models, or nothing.

use glue::{Metric, Split};

use crate::predictions::{self, Predicted, Predictions};
use crate::record::Record;
use crate::statistics::{Bootstrap, Estimate, McNemar, Sampling, almost_stochastic_order};
use crate::summary::Summary;

/// Of resampling, so that a verdict is the same each time.
const SEED: u64 = 0;

/// What there is to judge by.
#[derive(Clone, Debug, PartialEq)]
pub enum Evidence {
    /// Several runs of each method.
    Seeds(OverSeeds),
    /// One model of each, of these seeds, by its predictions. Of the methods it says nothing.
    Models {
        /// Of the runs of the first and the second.
        seeds: [u64; 2],
        /// How the two compare.
        test: PairTest,
    },
    /// Nothing can be said.
    Nothing(Reason),
}

/// The scores of several runs of each of two methods.
#[derive(Clone, Debug, PartialEq)]
pub struct OverSeeds {
    /// The scores, of the first and the second; where they are pairs, in the order of their seeds.
    pub scores: [Vec<f64>; 2],
    /// Whether they are pairs of one seed each.
    pub paired: bool,
    /// How many runs are not among them: those without a score, and those without a partner where runs are paired.
    pub left_out: usize,
    /// The mean score of the first less that of the second.
    pub difference: Estimate,
    /// The same over seeds and examples, where the predictions of all these runs are there.
    pub resampled: Option<Bootstrap>,
}

/// A test of two models on the same examples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PairTest {
    /// Of classes: which of them is right.
    McNemar(McNemar),
    /// Of scores: the metric, over resampled examples.
    Resampled(Bootstrap),
}

/// Why nothing can be said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// A method has one run with a score, or none: so many the first, and so many the second.
    FewRuns([usize; 2]),
    /// The runs of the first or the second differ in more than their seeds.
    Settings(usize),
    /// The runs were trained or measured on different data.
    Data,
    /// Their difference, this one, is the same with every seed.
    NoSpread(f64),
}

impl OverSeeds {
    /// The bound `ε_min` of [`almost_stochastic_order`], of the method with the higher mean above the other.
    pub fn dominance(&self) -> Option<f64> {
        let [first, second] = &self.scores;
        let (higher, lower) = if self.difference.value < 0.0 { (second, first) } else { (first, second) };
        almost_stochastic_order(higher, lower, SEED)
    }
}

impl Evidence {
    pub(super) fn new(summaries: [&Summary; 2], split: Split, metric: Metric, all_predictions: &[Predictions]) -> Self {
        let mixed = summaries.iter().position(|summary| summary.mixture().is_some());
        if let Some(side) = mixed {
            return Self::Nothing(Reason::Settings(side));
        }
        let [first, second] = summaries.map(|summary| &summary.records);
        if first.iter().chain(second).any(|record| !has_data_of(record, first[0])) {
            return Self::Nothing(Reason::Data);
        }
        let sides = summaries.map(|summary| scored(summary, split, metric));
        let pairs = pairs(&sides);
        let predicted = |record: &Record| predictions::of(all_predictions, record)?.on(split);
        if pairs.len() < 2 && sides.iter().any(|side| side.len() < 2) {
            let (shared, alone) = (pairs.first().copied(), sides.each_ref().map(|side| side.as_slice()));
            let models = shared.or(match alone {
                [[first], [second]] => Some([*first, *second]),
                _ => None,
            });
            let few = || Self::Nothing(Reason::FewRuns(sides.each_ref().map(Vec::len)));
            let Some(models) = models else { return few() };
            let [Some(first), Some(second)] = models.map(predicted) else { return few() };
            let seeds = models.map(|record| record.run.seed);
            return match PairTest::new([first, second], metric) {
                Some(test) => Self::Models { seeds, test },
                None => Self::Nothing(Reason::Data),
            };
        }
        let paired = pairs.len() >= 2;
        let compared = match paired {
            true => [0, 1].map(|side| pairs.iter().map(|pair| pair[side]).collect()),
            false => sides,
        };
        let scores = compared
            .each_ref()
            .map(|side: &Vec<&Record>| side.iter().map(|record| record.score_on(split, metric)).collect::<Vec<_>>());
        let difference = match paired {
            true => Estimate::paired_difference(&scores[0], &scores[1]),
            false => Estimate::difference(&scores[0], &scores[1]),
        };
        let Some(difference) = difference else {
            return Self::Nothing(Reason::FewRuns(scores.each_ref().map(Vec::len)));
        };
        if difference.standard_error == 0.0 {
            return Self::Nothing(Reason::NoSpread(difference.value));
        }
        let predicted =
            compared.each_ref().map(|side| side.iter().map(|record| predicted(record)).collect::<Option<Vec<_>>>());
        let resampled = match predicted {
            [Some(first), Some(second)] => resample([&first, &second], metric, paired),
            _ => None,
        };
        let runs = |records: &[Vec<&Record>; 2]| records.iter().map(Vec::len).sum::<usize>();
        let left_out = first.len() + second.len() - runs(&compared);
        Self::Seeds(OverSeeds { scores, paired, left_out, difference, resampled })
    }

    /// How much better the first is, in the metric or, of single models that give classes, in examples on which it alone is right; not a
    /// number where nothing can be said.
    pub fn difference(&self) -> f64 {
        match self {
            Self::Seeds(seeds) => seeds.difference.value,
            Self::Models { test: PairTest::McNemar(counts), .. } => {
                counts.only_first as f64 - counts.only_second as f64
            }
            Self::Models { test: PairTest::Resampled(resampled), .. } => resampled.difference,
            Self::Nothing(_) => f64::NAN,
        }
    }

    /// How probable such a difference is where there is none. Where there are two tests, over seeds and over seeds and examples, both
    /// must find it, so it is the higher p-value.
    pub fn p_value(&self) -> Option<f64> {
        match self {
            Self::Seeds(OverSeeds { difference, resampled, .. }) => {
                Some(difference.p_value()?.max(resampled.map_or(0.0, |resampled| resampled.p_value)))
            }
            Self::Models { test: PairTest::McNemar(counts), .. } => Some(counts.p_value()),
            Self::Models { test: PairTest::Resampled(resampled), .. } => Some(resampled.p_value),
            Self::Nothing(_) => None,
        }
    }
}

impl PairTest {
    /// `None` where the two were not measured on the same examples, or a metric of theirs is not a number.
    fn new(models: [&Predicted; 2], metric: Metric) -> Option<Self> {
        let [first, second] = models;
        if first.labels != second.labels {
            return None;
        }
        match (first.right(), second.right()) {
            (Some(first), Some(second)) => Some(Self::McNemar(McNemar::new(first.into_iter().zip(second)))),
            _ => resample([&[first], &[second]], metric, true).map(Self::Resampled),
        }
    }
}

/// The records with a score in this metric, one for each seed, in the order of their seeds.
fn scored<'a>(summary: &Summary<'a>, split: Split, metric: Metric) -> Vec<&'a Record> {
    let mut records: Vec<&Record> =
        summary.records.iter().copied().filter(|record| record.score_on(split, metric).is_finite()).collect();
    records.sort_by_key(|record| record.run.seed);
    records.dedup_by_key(|record| record.run.seed);
    records
}

/// The records of each seed that both sides have.
fn pairs<'a>([first, second]: &[Vec<&'a Record>; 2]) -> Vec<[&'a Record; 2]> {
    let partner = |record: &&'a Record| {
        let other = second.iter().find(|other| other.run.seed == record.run.seed)?;
        Some([*record, *other])
    };
    first.iter().filter_map(partner).collect()
}

/// Whether two runs had the same examples, as far as their records tell.
fn has_data_of(record: &Record, other: &Record) -> bool {
    let digest = |record: &Record| record.inputs.as_ref().and_then(|inputs| inputs.data.clone());
    let same_digest = match (digest(record), digest(other)) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    };
    let [one, other] =
        [record, other].map(|record| (&record.data.train, &record.data.validation, record.data.train_used));
    same_digest && one == other
}

/// The multi-bootstrap of these predictions; `None` where they are not for the same examples, or a score is not a number.
fn resample(sides: [&[&Predicted]; 2], metric: Metric, paired: bool) -> Option<Bootstrap> {
    let labels = &sides[0].first()?.labels;
    if sides.iter().copied().flatten().any(|predicted| predicted.labels != *labels) {
        return None;
    }
    let sampling = Sampling { runs: sides.map(<[_]>::len), paired, examples: Some(labels.len()) };
    Bootstrap::new(sampling, SEED, |side, run, examples| sides[side][run].score(metric, examples))
}
