//! The metrics of GLUE, as scikit-learn and scipy compute them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::number::Number;
use crate::task::Task;

/// A metric of the GLUE leaderboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// The share of examples whose class is right.
    Accuracy,
    /// The harmonic mean of precision and recall of class 1.
    F1,
    /// Matthews' correlation coefficient, for any number of classes.
    Matthews,
    /// Pearson's correlation coefficient.
    Pearson,
    /// Spearman's rank correlation coefficient, equal values sharing their mean rank.
    Spearman,
}

impl Metric {
    /// Its value for predictions against as many labels given; `None` where one or the other is not of its kind.
    pub fn value(self, predicted: &Targets, gold: &Targets) -> Option<f64> {
        match (self, predicted, gold) {
            (Self::Accuracy, Targets::Classes(p), Targets::Classes(g)) => Some(accuracy(p, g)),
            (Self::F1, Targets::Classes(p), Targets::Classes(g)) => Some(f1(p, g)),
            (Self::Matthews, Targets::Classes(p), Targets::Classes(g)) => Some(matthews(p, g)),
            (Self::Pearson, Targets::Values(p), Targets::Values(g)) => Some(pearson(p, g)),
            (Self::Spearman, Targets::Values(p), Targets::Values(g)) => Some(spearman(p, g)),
            _ => None,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::Accuracy => "accuracy",
            Self::F1 => "F1",
            Self::Matthews => "Matthews",
            Self::Pearson => "Pearson",
            Self::Spearman => "Spearman",
        })
    }
}

/// Labels, given or predicted.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Class ids.
    Classes(Vec<usize>),
    /// Scores.
    Values(Vec<f64>),
}

impl Targets {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Classes(ids) => ids.len(),
            Self::Values(values) => values.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those at these places, which must be there.
    pub fn at(&self, places: &[usize]) -> Self {
        match self {
            Self::Classes(ids) => Self::Classes(places.iter().map(|&place| ids[place]).collect()),
            Self::Values(values) => Self::Values(places.iter().map(|&place| values[place]).collect()),
        }
    }

    /// What predicts these best and looks at no text: `rows` times the most frequent class (of equally frequent ones the
    /// lowest), or the mean score. A correlation with it is not a number.
    pub fn majority(&self, rows: usize) -> Self {
        match self {
            Self::Classes(ids) => Self::Classes(vec![majority(ids); rows]),
            Self::Values(values) => Self::Values(vec![values.iter().sum::<f64>() / values.len() as f64; rows]),
        }
    }
}

/// The values of a task's metrics. One that is not a number (a correlation with a constant) is `null` in JSON.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores(pub BTreeMap<Metric, f64>);

impl Serialize for Scores {
    fn serialize<S: Serializer>(&self, output: S) -> std::result::Result<S::Ok, S::Error> {
        output.collect_map(self.0.iter().map(|(metric, &value)| (metric, Number(value))))
    }
}

impl<'de> Deserialize<'de> for Scores {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        let scores = BTreeMap::<Metric, Number>::deserialize(input)?;
        Ok(Self(scores.into_iter().map(|(metric, Number(value))| (metric, value)).collect()))
    }
}

impl Scores {
    /// The value of a metric, if it was computed.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        self.0.get(&metric).copied()
    }

    /// The task's score: the unweighted mean of its metrics; not a number if one of them is not.
    pub fn mean(&self) -> f64 {
        self.0.values().sum::<f64>() / self.0.len() as f64
    }
}

impl Task {
    /// The task's metrics for predictions against the labels given.
    ///
    /// # Errors
    /// When the two differ in length or kind, or are empty.
    pub fn score(self, predicted: &Targets, gold: &Targets) -> Result<Scores> {
        let wrong = |expected: String, found: String| {
            Err(Error::Predictions { what: format!("{self} predictions"), expected, found })
        };
        if predicted.len() != gold.len() || gold.is_empty() {
            return wrong(format!("{} of them, at least one", gold.len()), predicted.len().to_string());
        }
        let value = |&metric: &Metric| Some((metric, metric.value(predicted, gold)?));
        let scores: Option<BTreeMap<_, _>> = self.metrics().iter().map(value).collect();
        match scores {
            Some(scores) => Ok(Scores(scores)),
            None => wrong(if self.is_regression() { "scores" } else { "classes" }.into(), "the other kind".into()),
        }
    }
}

/// The most frequent class; of equally frequent ones the lowest.
pub(crate) fn majority(labels: &[usize]) -> usize {
    let mut counts = vec![0_usize; labels.iter().max().map_or(1, |highest| highest + 1)];
    labels.iter().for_each(|&label| counts[label] += 1);
    // From the last, as of equal counts `max_by_key` takes the one it meets last.
    (0..counts.len()).rev().max_by_key(|&class| counts[class]).unwrap_or(0)
}

/// The share of equal entries.
pub fn accuracy(predicted: &[usize], gold: &[usize]) -> f64 {
    predicted.iter().zip(gold).filter(|(p, g)| p == g).count() as f64 / gold.len() as f64
}

/// `2 TP / (2 TP + FP + FN)` of class 1; 0 when class 1 neither is nor is predicted, as scikit-learn's `f1_score`.
pub fn f1(predicted: &[usize], gold: &[usize]) -> f64 {
    let both = predicted.iter().zip(gold).filter(|&(&p, &g)| p == 1 && g == 1).count();
    let ones = predicted.iter().chain(gold).filter(|&&label| label == 1).count();
    if ones == 0 { 0.0 } else { 2.0 * both as f64 / ones as f64 }
}

/// `(c s - sum p_k t_k) / sqrt((s^2 - sum p_k^2) (s^2 - sum t_k^2))` (Gorodkin 2004, R_K), with s examples, c of them right, and
/// class k predicted p_k and given t_k times; for two classes it is Matthews' coefficient. 0 when predictions or labels are
/// all of one class, as scikit-learn's `matthews_corrcoef`.
pub fn matthews(predicted: &[usize], gold: &[usize]) -> f64 {
    let classes = predicted.iter().chain(gold).max().map_or(0, |highest| highest + 1);
    let count = |labels: &[usize], class| labels.iter().filter(|&&label| label == class).count() as f64;
    let (mut products, mut predicted_squares, mut gold_squares) = (0.0, 0.0, 0.0);
    for class in 0..classes {
        let (p, t) = (count(predicted, class), count(gold, class));
        products += p * t;
        predicted_squares += p * p;
        gold_squares += t * t;
    }
    let s = gold.len() as f64;
    let c = predicted.iter().zip(gold).filter(|(p, g)| p == g).count() as f64;
    let denominator = ((s * s - predicted_squares) * (s * s - gold_squares)).sqrt();
    if denominator == 0.0 { 0.0 } else { (c * s - products) / denominator }
}

/// Pearson's r; not a number when one side is constant, as scipy's `pearsonr`.
pub fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let count = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / count, b.iter().sum::<f64>() / count);
    let (mut products, mut squares_a, mut squares_b) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        products += (x - mean_a) * (y - mean_b);
        squares_a += (x - mean_a).powi(2);
        squares_b += (y - mean_b).powi(2);
    }
    // By the values: the mean of equal ones can differ from them by rounding, which would leave squares that are not 0.
    let constant = |values: &[f64]| values.iter().all(|&value| value == values[0]);
    if constant(a) || constant(b) || squares_a == 0.0 || squares_b == 0.0 {
        return f64::NAN;
    }
    (products / (squares_a.sqrt() * squares_b.sqrt())).clamp(-1.0, 1.0)
}

/// Pearson's r of the ranks. (The shortcut over squared rank differences is wrong when values are equal, and STS-B's often
/// are.)
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    pearson(&ranks(a), &ranks(b))
}

/// Ranks from 1, equal values sharing the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for group in order.chunk_by(|&i, &j| values[i] == values[j]) {
        let rank = start as f64 + (group.len() + 1) as f64 / 2.0;
        group.iter().for_each(|&index| ranks[index] = rank);
        start += group.len();
    }
    if values.iter().any(|value| value.is_nan()) { vec![f64::NAN; values.len()] } else { ranks }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_a_small_table_are_those_computed_by_hand() {
        // TP 2, FP 1, FN 1, TN 1
        let (predicted, gold) = ([1, 1, 1, 0, 0], [1, 1, 0, 1, 0]);
        assert_eq!(accuracy(&predicted, &gold), 0.6);
        assert_eq!(f1(&predicted, &gold), 2.0 / 3.0);
        let by_hand = (2.0 * 1.0 - 1.0 * 1.0) / f64::sqrt(3.0 * 3.0 * 2.0 * 2.0);
        assert!((matthews(&predicted, &gold) - by_hand).abs() < 1e-15);
    }

    #[test]
    fn the_majority_is_the_most_frequent_class_and_of_equals_the_lowest_or_the_mean_score() {
        assert_eq!(Targets::Classes(vec![0, 2, 2, 1]).majority(2), Targets::Classes(vec![2, 2]));
        assert_eq!(Targets::Classes(vec![2, 1, 2, 1, 0]).majority(1), Targets::Classes(vec![1]));
        assert_eq!(Targets::Values(vec![1.0, 4.0]).majority(3), Targets::Values(vec![2.5; 3]));
    }

    #[test]
    fn equal_values_share_their_mean_rank() {
        assert_eq!(ranks(&[10.0, 20.0, 10.0, 5.0]), [2.5, 4.0, 2.5, 1.0]);
    }

    #[test]
    fn degenerate_cases_are_zero_or_not_a_number_as_in_the_reference_libraries() {
        assert_eq!(f1(&[0, 0], &[0, 0]), 0.0);
        assert_eq!(matthews(&[1, 1, 1], &[1, 0, 1]), 0.0);
        assert!(pearson(&[1.0, 1.0], &[1.0, 2.0]).is_nan());
        // The mean of three times 0.1 is not 0.1 in floating point.
        assert!(pearson(&[0.1, 0.1, 0.1], &[1.0, 2.0, 4.0]).is_nan());
        assert!(pearson(&[1.0, 2.0, 4.0], &[0.1, 0.1, 0.1]).is_nan());
        assert!(spearman(&[f64::NAN, 1.0], &[1.0, 2.0]).is_nan());
    }

    #[test]
    fn a_missing_prediction_is_an_error() {
        let error = Task::Rte.score(&Targets::Classes(vec![1]), &Targets::Classes(vec![1, 0])).unwrap_err();
        assert!(error.to_string().contains("expected 2"), "{error}");
        assert!(Task::Rte.score(&Targets::Values(vec![1.0]), &Targets::Classes(vec![1])).is_err());
    }

    #[test]
    fn a_score_that_is_not_a_number_survives_json() {
        let scores = Scores([(Metric::Pearson, f64::NAN), (Metric::Spearman, 0.1 + 0.2)].into());
        let json = serde_json::to_string(&scores).unwrap();
        assert_eq!(json, r#"{"pearson":null,"spearman":0.30000000000000004}"#);
        let read: Scores = serde_json::from_str(&json).unwrap();
        assert!(read.get(Metric::Pearson).unwrap().is_nan() && read.mean().is_nan());
        assert_eq!(read.get(Metric::Spearman), Some(0.1 + 0.2));
    }
}
