//! What a table says of the runs of one method on one task: mean and deviation over seeds, share trained, training time.

use std::collections::BTreeMap;

use glue::{Baseline, Metric, Split};

use crate::numbers;
use crate::record::{Record, Stop};
use crate::statistics::{Estimate, Interval, mean_and_deviation};

/// The runs of one method on one task, at least one.
#[derive(Clone, Debug)]
pub struct Summary<'a> {
    /// A record for each seed.
    pub records: Vec<&'a Record>,
}

impl Summary<'_> {
    /// The method's name.
    pub fn name(&self) -> String {
        self.records[0].run.method_name()
    }

    /// The best value of each run.
    pub fn values(&self, metric: Metric) -> Vec<f64> {
        self.records.iter().map(|record| record.best_metric(metric)).collect()
    }

    /// Over the runs.
    pub fn mean_and_deviation(&self, metric: Metric) -> (f64, f64) {
        mean_and_deviation(&self.values(metric))
    }

    /// Over the runs, on one of the task's validation splits.
    pub fn mean_and_deviation_on(&self, split: Split, metric: Metric) -> (f64, f64) {
        let values: Vec<f64> = self.records.iter().map(|record| record.score_on(split, metric)).collect();
        mean_and_deviation(&values)
    }

    /// The values on one of the task's validation splits of those runs that have one.
    pub fn scores_on(&self, split: Split, metric: Metric) -> Vec<f64> {
        let scores = self.records.iter().map(|record| record.score_on(split, metric));
        scores.filter(|score| score.is_finite()).collect()
    }

    /// The 95 % interval of the mean over seeds, by Student's t; `None` of fewer than two runs.
    pub fn interval_on(&self, split: Split, metric: Metric) -> Option<Interval> {
        Estimate::mean(&self.scores_on(split, metric)).map(|estimate| estimate.interval())
    }

    /// The mean of the best values as text, with their deviation where there are several.
    pub fn score(&self, metric: Metric) -> String {
        self.text(self.mean_and_deviation(metric))
    }

    /// The same on one of the task's validation splits.
    pub fn score_on(&self, split: Split, metric: Metric) -> String {
        self.text(self.mean_and_deviation_on(split, metric))
    }

    fn text(&self, (mean, deviation): (f64, f64)) -> String {
        numbers::mean_and_deviation(mean, deviation, self.scored())
    }

    /// How many runs have a score.
    fn scored(&self) -> usize {
        self.records.iter().filter(|record| record.best_score().is_finite()).count()
    }

    /// How many runs there are. Where some have no score, so that the mean is of the others, or diverged, it says so: `4 of 5, 1 diverged`.
    pub fn seeds(&self) -> String {
        self.count("")
    }

    /// The same as a note, where the mean is not of all runs or one of them diverged: `RTE, LoRA r=8: 4 of 5 seeds, 1 diverged`.
    pub fn gap(&self) -> Option<String> {
        let (count, all) = (self.count(" seeds"), self.records.len());
        (count != format!("{all} seeds")).then(|| format!("{}, {}: {count}", self.records[0].run.task, self.name()))
    }

    fn count(&self, what: &str) -> String {
        let count = match (self.scored(), self.records.len()) {
            (scored, all) if scored == all => format!("{all}{what}"),
            (scored, all) => format!("{scored} of {all}{what}"),
        };
        match self.records.iter().filter(|record| record.stop == Stop::Diverged).count() {
            0 => count,
            diverged => format!("{count}, {diverged} diverged"),
        }
    }

    /// So many numbers as a share of the model's, in percent.
    pub fn share_of_model(&self, numbers: usize) -> String {
        format!("{:.2} %", 100.0 * numbers as f64 / self.records[0].parameters.total as f64)
    }

    /// Whether the mean on a baseline's split is above it.
    pub fn is_above(&self, baseline: &Baseline) -> bool {
        self.mean_and_deviation_on(baseline.split, baseline.metric).0 > baseline.value
    }

    /// What to say of them if they differ in more than their seed: their mean is over different settings.
    pub fn mixture(&self) -> Option<String> {
        let first = &self.records[0].run;
        let mixed = self.records.iter().any(|record| record.run.clone().seed(first.seed) != *first);
        mixed.then(|| format!("{}, {}: the mean is over runs with different settings", first.task, self.name()))
    }

    /// The mean training time of a run; where runs were made by different processors, that on each: `17.2 min, 31 s (NVIDIA H200)`.
    pub fn training_time(&self) -> String {
        let mut seconds: BTreeMap<Option<&str>, Vec<f64>> = BTreeMap::new(); // The CPU's first.
        for record in &self.records {
            seconds.entry(record.environment.gpu.as_deref()).or_default().push(record.train_seconds);
        }
        let text = |(gpu, seconds): (Option<&str>, Vec<f64>)| {
            let mean = numbers::duration(mean_and_deviation(&seconds).0);
            gpu.map_or_else(|| mean.clone(), |gpu| format!("{mean} ({gpu})"))
        };
        seconds.into_iter().map(text).collect::<Vec<_>>().join(", ")
    }

    /// The mean training time of a run, in seconds, on whatever processors.
    pub fn seconds(&self) -> f64 {
        mean_and_deviation(&self.records.iter().map(|record| record.train_seconds).collect::<Vec<_>>()).0
    }

    /// Numbers trained besides the classifier's.
    pub fn parameters(&self) -> usize {
        self.records[0].parameters.without_head
    }
}

#[cfg(test)]
mod tests {
    use glue::Task;
    use peft::Method;

    use super::*;
    use crate::submission::tests::record;

    #[test]
    fn times_of_different_processors_have_means_of_their_own() {
        let times = [(None, 1000.0), (None, 1064.0), (Some("NVIDIA H200"), 30.0)];
        let records = times.map(|(gpu, seconds)| {
            let mut record = record(Task::Rte, Method::bitfit(), 1, 0.5);
            record.environment.gpu = gpu.map(String::from);
            record.train_seconds = seconds;
            record
        });
        let all = Summary { records: records.iter().collect() };
        assert_eq!(all.training_time(), "17.2 min, 30 s (NVIDIA H200)");
        assert_eq!(Summary { records: vec![&records[2]] }.training_time(), "30 s (NVIDIA H200)");
    }

    #[test]
    fn a_mean_says_of_how_many_seeds_it_is_and_how_many_diverged() {
        let mut records = [1, 2, 3, 4, 5].map(|seed| record(Task::Rte, Method::bitfit(), seed, 0.5));
        let said = |records: &[Record]| {
            let summary = Summary { records: records.iter().collect() };
            (summary.seeds(), summary.gap())
        };
        assert_eq!(said(&records), ("5".into(), None));
        (records[3].stop, records[3].best) = (Stop::Diverged, None);
        assert_eq!(said(&records), ("4 of 5, 1 diverged".into(), Some("RTE, BitFit: 4 of 5 seeds, 1 diverged".into())));
        // The score of one that diverged later is of before, and counts.
        records[0].stop = Stop::Diverged;
        assert_eq!(said(&records[..3]), ("3, 1 diverged".into(), Some("RTE, BitFit: 3 seeds, 1 diverged".into())));
        records[1].best = None;
        assert_eq!(said(&records[1..3]).0, "1 of 2");
    }
}
