//! The tasks of GLUE and what is fixed about each: labels, metrics, sizes, the baseline to beat.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::metrics::Metric;

/// A task of the GLUE benchmark (Wang et al. 2019), or the project's own synthetic one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are GLUE's")]
pub enum Task {
    Cola,
    Sst2,
    Mrpc,
    StsB,
    Qqp,
    Mnli,
    Qnli,
    Rte,
    Wnli,
    Ax,
    /// Sentence pairs from templates, in GLUE's format: something to run where there is no GLUE. Not a benchmark.
    Synthetic,
}

/// A part of a task's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// For training.
    Train,
    /// For measuring; GLUE's "dev". MNLI's matched one.
    Validation,
    /// MNLI's validation data from other genres than its training data.
    ValidationMismatched,
    /// Without labels. MNLI's matched one.
    Test,
    /// MNLI's test data from other genres.
    TestMismatched,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::ValidationMismatched => "validation (mismatched)",
            Self::Test => "test",
            Self::TestMismatched => "test (mismatched)",
        })
    }
}

/// A score to beat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Baseline {
    /// On which split.
    pub split: Split,
    /// In which metric.
    pub metric: Metric,
    /// From 0 to 1.
    pub value: f64,
}

const NLI: &[&str] = &["entailment", "neutral", "contradiction"];

impl Task {
    /// GLUE's ten rows.
    pub const ALL: [Self; 10] = [
        Self::Cola,
        Self::Sst2,
        Self::Mrpc,
        Self::StsB,
        Self::Qqp,
        Self::Mnli,
        Self::Qnli,
        Self::Rte,
        Self::Wnli,
        Self::Ax,
    ];

    /// The name in Hugging Face's data sets, such as `sst2`.
    pub fn id(self) -> &'static str {
        match self {
            Self::Cola => "cola",
            Self::Sst2 => "sst2",
            Self::Mrpc => "mrpc",
            Self::StsB => "stsb",
            Self::Qqp => "qqp",
            Self::Mnli => "mnli",
            Self::Qnli => "qnli",
            Self::Rte => "rte",
            Self::Wnli => "wnli",
            Self::Ax => "ax",
            Self::Synthetic => "synthetic",
        }
    }

    /// GLUE's name, such as `SST-2`; also that of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cola => "CoLA",
            Self::Sst2 => "SST-2",
            Self::Mrpc => "MRPC",
            Self::StsB => "STS-B",
            Self::Qqp => "QQP",
            Self::Mnli => "MNLI",
            Self::Qnli => "QNLI",
            Self::Rte => "RTE",
            Self::Wnli => "WNLI",
            Self::Ax => "AX",
            Self::Synthetic => "Synthetic",
        }
    }

    /// The names of the classes, in the order of their ids in Hugging Face's data sets; none for a score.
    pub fn labels(self) -> &'static [&'static str] {
        match self {
            Self::Cola => &["unacceptable", "acceptable"],
            Self::Sst2 => &["negative", "positive"],
            Self::Mrpc | Self::Synthetic => &["not_equivalent", "equivalent"],
            Self::StsB => &[],
            Self::Qqp => &["not_duplicate", "duplicate"],
            Self::Mnli | Self::Ax => NLI,
            Self::Qnli | Self::Rte => &["entailment", "not_entailment"],
            Self::Wnli => &["not_entailment", "entailment"],
        }
    }

    /// Whether the label is a score rather than a class: STS-B's, from 0 to 5.
    pub fn is_regression(self) -> bool {
        self == Self::StsB
    }

    /// Outputs of a classifier for the task; 1 for a score.
    pub fn num_labels(self) -> usize {
        self.labels().len().max(1)
    }

    /// Whether an example is a pair of sentences.
    pub fn has_pairs(self) -> bool {
        !matches!(self, Self::Cola | Self::Sst2)
    }

    /// The metrics of the GLUE leaderboard; the task's score is their mean.
    pub fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Cola | Self::Ax => &[Metric::Matthews],
            Self::Mrpc | Self::Qqp | Self::Synthetic => &[Metric::Accuracy, Metric::F1],
            Self::StsB => &[Metric::Pearson, Metric::Spearman],
            Self::Sst2 | Self::Mnli | Self::Qnli | Self::Rte | Self::Wnli => &[Metric::Accuracy],
        }
    }

    /// The scores to beat.
    pub fn baselines(self) -> &'static [Baseline] {
        macro_rules! baselines {
            ($($split:ident $metric:ident $value:literal),*) => {
                &[$(Baseline { split: Split::$split, metric: Metric::$metric, value: $value }),*]
            };
        }
        match self {
            Self::Cola => baselines!(Validation Matthews 0.6),
            Self::Sst2 => baselines!(Validation Accuracy 0.88),
            Self::Rte => baselines!(Validation Accuracy 0.7),
            Self::Mrpc | Self::Synthetic => baselines!(Validation Accuracy 0.8),
            Self::StsB => baselines!(Validation Pearson 0.8, Validation Spearman 0.8),
            Self::Qqp => baselines!(Validation F1 0.8, Validation Accuracy 0.8),
            Self::Mnli => baselines!(Validation Accuracy 0.8, ValidationMismatched Accuracy 0.8),
            Self::Qnli => baselines!(Validation Accuracy 0.85),
            Self::Wnli => baselines!(Validation Accuracy 0.8),
            Self::Ax => &[],
        }
    }

    /// Rows of the official file (the Hugging Face card `nyu-mll/glue`).
    pub fn official_rows(self, split: Split) -> Option<usize> {
        use Split::{Test, TestMismatched, Train, Validation, ValidationMismatched};
        let [train, validation, test] = match self {
            Self::Cola => [8551, 1043, 1063],
            Self::Sst2 => [67349, 872, 1821],
            Self::Mrpc => [3668, 408, 1725],
            Self::StsB => [5749, 1500, 1379],
            Self::Qqp => [363_846, 40430, 390_965],
            Self::Mnli => [392_702, 9815, 9796],
            Self::Qnli => [104_743, 5463, 5463],
            Self::Rte => [2490, 277, 3000],
            Self::Wnli => [635, 71, 146],
            Self::Ax => [0, 0, 1104],
            Self::Synthetic => return None,
        };
        let rows = match (self, split) {
            (_, Train) => train,
            (_, Validation) => validation,
            (_, Test) => test,
            (Self::Mnli, ValidationMismatched) => 9832,
            (Self::Mnli, TestMismatched) => 9847,
            _ => 0,
        };
        (rows > 0).then_some(rows)
    }

    /// The labeled splits that are not for training; the first is the one a model is chosen by.
    pub fn validation_splits(self) -> &'static [Split] {
        match self {
            Self::Ax => &[],
            Self::Mnli => &[Split::Validation, Split::ValidationMismatched],
            _ => &[Split::Validation],
        }
    }

    /// The splits without labels.
    pub fn test_splits(self) -> &'static [Split] {
        match self {
            Self::Mnli => &[Split::Test, Split::TestMismatched],
            _ => &[Split::Test],
        }
    }

    /// All splits the task has.
    pub fn splits(self) -> Vec<Split> {
        let train = (self != Self::Ax).then_some(Split::Train);
        train.into_iter().chain(self.validation_splits().iter().chain(self.test_splits()).copied()).collect()
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Task {
    type Err = Error;

    /// The id or GLUE's name, in any case.
    fn from_str(text: &str) -> Result<Self> {
        let mut all = Self::ALL.into_iter().chain([Self::Synthetic]);
        all.find(|task| text.eq_ignore_ascii_case(task.id()) || text.eq_ignore_ascii_case(task.name())).ok_or_else(
            || {
                let choices = Self::ALL.map(Self::id).join(", ");
                Error::UnknownTask { found: text.into(), choices: format!("{choices}, synthetic") }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_known_by_its_id_and_by_glues_name_in_any_case() {
        assert_eq!("SST-2".parse::<Task>().unwrap(), Task::Sst2);
        assert_eq!("stsb".parse::<Task>().unwrap(), Task::StsB);
        let error = "imdb".parse::<Task>().unwrap_err().to_string();
        assert!(error.contains("imdb") && error.contains("mrpc"), "{error}");
    }

    #[test]
    fn rte_and_wnli_have_opposite_label_orders() {
        assert_eq!(Task::Rte.labels()[0], "entailment");
        assert_eq!(Task::Wnli.labels()[0], "not_entailment");
    }

    #[test]
    fn every_task_but_ax_has_a_baseline_in_one_of_its_metrics() {
        for task in Task::ALL.into_iter().filter(|&task| task != Task::Ax) {
            assert!(!task.baselines().is_empty(), "{task}");
            assert!(task.baselines().iter().all(|baseline| task.metrics().contains(&baseline.metric)), "{task}");
        }
        assert_eq!(Task::Rte.baselines()[0].value, 0.7);
    }
}
