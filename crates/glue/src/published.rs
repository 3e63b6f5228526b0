//! What others reached, to set beside one's own scores.

use std::fmt;

use crate::metrics::Metric;
use crate::task::{Split, Task};

/// A model with published scores on GLUE's validation sets, each from one run of full fine-tuning on a whole training set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishedModel {
    /// bert-base-cased: the table in [transformers' example](https://github.com/huggingface/transformers/blob/05ce25bec3bf88363cd6fe05693b6947aba7e604/examples/pytorch/text-classification/README.md),
    /// 3 epochs (5 of MRPC and WNLI), all in f32.
    BertBase,
    /// roberta.base: the table in [fairseq's example](https://github.com/facebookresearch/fairseq/blob/138dc8e4fd02f81074842731d1bdd9401aa59489/examples/roberta/README.md),
    /// a single model for each task. It has one number for a task and names no metric: it is taken as CoLA's Matthews, STS-B's Pearson,
    /// else accuracy, MNLI's on the matched set.
    RobertaBase,
}

impl PublishedModel {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::BertBase, Self::RobertaBase];
}

impl fmt::Display for PublishedModel {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::BertBase => "BERT-base",
            Self::RobertaBase => "RoBERTa-base",
        })
    }
}

/// A published score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Published {
    /// Whose.
    pub model: PublishedModel,
    /// On which split.
    pub split: Split,
    /// In which metric.
    pub metric: Metric,
    /// From 0 to 1, or from -1 for a correlation.
    pub value: f64,
}

impl Task {
    /// The published scores, with the sources that [`PublishedModel`] names.
    pub fn published(self) -> &'static [Published] {
        macro_rules! published {
            ($($model:ident $split:ident $metric:ident $value:literal),*) => {
                &[$(Published {
                    model: PublishedModel::$model,
                    split: Split::$split,
                    metric: Metric::$metric,
                    value: $value,
                }),*]
            };
        }
        match self {
            Self::Cola => {
                published!(BertBase Validation Matthews 0.5653, RobertaBase Validation Matthews 0.636)
            }
            Self::Sst2 => {
                published!(BertBase Validation Accuracy 0.9232, RobertaBase Validation Accuracy 0.948)
            }
            Self::Mrpc => published!(
                BertBase Validation Accuracy 0.8407,
                BertBase Validation F1 0.8885,
                RobertaBase Validation Accuracy 0.902
            ),
            Self::StsB => published!(
                BertBase Validation Pearson 0.8864,
                BertBase Validation Spearman 0.8848,
                RobertaBase Validation Pearson 0.912
            ),
            Self::Qqp => published!(
                BertBase Validation Accuracy 0.9071,
                BertBase Validation F1 0.8749,
                RobertaBase Validation Accuracy 0.919
            ),
            Self::Mnli => published!(
                BertBase Validation Accuracy 0.8391,
                BertBase ValidationMismatched Accuracy 0.8410,
                RobertaBase Validation Accuracy 0.876
            ),
            Self::Qnli => {
                published!(BertBase Validation Accuracy 0.9066, RobertaBase Validation Accuracy 0.928)
            }
            Self::Rte => {
                published!(BertBase Validation Accuracy 0.6570, RobertaBase Validation Accuracy 0.787)
            }
            Self::Wnli => published!(BertBase Validation Accuracy 0.5634),
            Self::Ax | Self::Synthetic => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_published_score_is_in_a_metric_and_on_a_validation_split_of_its_task() {
        for task in Task::ALL {
            for published in task.published() {
                assert!(task.metrics().contains(&published.metric), "{task}: {published:?}");
                assert!(task.validation_splits().contains(&published.split), "{task}: {published:?}");
            }
        }
    }

    #[test]
    fn bert_has_a_score_in_every_metric_of_every_labeled_set() {
        for task in Task::ALL {
            for &split in task.validation_splits() {
                for &metric in task.metrics() {
                    let of_bert = task.published().iter().filter(|published| {
                        (published.model, published.split, published.metric)
                            == (PublishedModel::BertBase, split, metric)
                    });
                    assert_eq!(of_bert.count(), 1, "{task}, {split}, {metric}");
                }
            }
        }
    }
}
