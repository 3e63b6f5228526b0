//! Run records by task and method, summarized, each method with its style.

use std::ops::Deref;

use glue::{Baseline, Metric, Split, Task};
use peft::Method;
use trainer::summary::Summary;
use trainer::{Record, Run};

use crate::palette::Style;

/// The runs of one method on one task; see [`trainer::Run::has_method_of`].
pub(crate) struct Group<'a> {
    pub task: Task,
    pub method: &'a Method,
    /// The method's own, the same on every task.
    pub style: Style,
    pub summary: Summary<'a>,
}

impl<'a> Deref for Group<'a> {
    type Target = Summary<'a>;

    fn deref(&self) -> &Summary<'a> {
        &self.summary
    }
}

/// Records by task and method, both in the order in which they first appear.
pub(crate) fn by_method(records: &[Record]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    for record in records {
        let (task, method) = (record.run.task, &record.run.method);
        match groups.iter_mut().find(|group| group.task == task && group.records[0].run.has_method_of(&record.run)) {
            Some(group) => group.summary.records.push(record),
            None => {
                let summary = Summary { records: vec![record] };
                groups.push(Group { task, method, style: style(&groups, &record.run), summary });
            }
        }
    }
    groups
}

/// The style of a run's method: the one it has on another task, or one that no other method has.
fn style(groups: &[Group], run: &Run) -> Style {
    match groups.iter().find(|group| group.records[0].run.has_method_of(run)) {
        Some(same) => same.style.clone(),
        None => {
            let taken: Vec<Style> = groups.iter().map(|group| group.style.clone()).collect();
            Style::of(&run.method).unlike(&taken)
        }
    }
}

/// The tasks of some records, in the order in which they first appear.
pub(crate) fn tasks(records: &[Record]) -> Vec<Task> {
    let mut tasks = Vec::new();
    for record in records {
        if !tasks.contains(&record.run.task) {
            tasks.push(record.run.task);
        }
    }
    tasks
}

/// The metric a task is judged by here: that of its baseline.
pub(crate) fn main_metric(task: Task) -> Metric {
    task.baselines().first().map_or(task.metrics()[0], |baseline| baseline.metric)
}

/// A task's baseline in a metric on one of its splits.
pub(crate) fn baseline(task: Task, split: Split, metric: Metric) -> Option<&'static Baseline> {
    task.baselines().iter().find(|baseline| (baseline.split, baseline.metric) == (split, metric))
}

/// What must stand beside the scores of some records.
pub(crate) fn caveats(records: &[Record]) -> Vec<String> {
    let mut caveats: Vec<String> = Vec::new();
    for record in records {
        if let Some(caveat) = record.data.caveat() {
            let caveat = format!("{}: {caveat}", record.run.task);
            if !caveats.contains(&caveat) {
                caveats.push(caveat);
            }
        }
    }
    caveats
}

#[cfg(test)]
pub(crate) mod tests {
    use glue::{Completeness, Scores};
    use trainer::{DataSummary, Environment, Evaluation, ParameterCounts, Run, StepLoss, Stop};

    use super::*;

    /// A record with made-up values, which reaches `score` in every metric at its second of three evaluations.
    pub(crate) fn record(task: Task, method: Method, seed: u64, score: f64) -> Record {
        let trained = match &method {
            Method::Full => 22_714_000,
            Method::Lora(lora) => 9216 * lora.r,
            Method::BitFit(_) => 42_000,
            _ => 10_000,
        };
        let evaluation = |step: usize, value: f64| Evaluation {
            step,
            epoch: step as f64 / 50.0,
            loss: 1.2 - value,
            scores: Scores(task.metrics().iter().map(|&metric| (metric, value)).collect()),
            other_scores: Vec::new(),
        };
        let evaluations = vec![evaluation(50, score - 0.04), evaluation(100, score), evaluation(150, score - 0.01)];
        let loss = |step: u32| StepLoss {
            step: step as usize,
            epoch: f64::from(step) / 50.0,
            loss: 0.7 * (-f64::from(step) / 80.0).exp() + f64::from((step * 7919 + seed as u32 * 31) % 13) / 60.0,
            learning_rate: 1e-3,
        };
        let complete = |split| {
            let official = task.official_rows(split);
            Completeness { found: official.unwrap_or(1000), official, extra: None }
        };
        Record {
            inputs: None,
            model_made_by: None,
            run: Run::new(task, "all-MiniLM-L6-v2", method).seed(seed),
            parameters: ParameterCounts { trainable: trained + 770, without_head: trained, total: 22_714_770 },
            data: DataSummary {
                train_used: complete(Split::Train).found,
                train: complete(Split::Train),
                validation: vec![(Split::Validation, complete(Split::Validation))],
                dropped: 0,
                origin: "a test".into(),
                synthetic: task == Task::Synthetic,
            },
            losses: (1..=150).map(loss).collect(),
            best: Some(evaluations[1].clone()),
            movement: None,
            evaluations,
            stop: Stop::Finished,
            train_seconds: 60.0,
            tokens: 240_000,
            peak_memory: 1 << 30,
            environment: Environment {
                gpu: None,
                cards: None,
                at_once: None,
                commit: None,
                version: "0.1.0".into(),
                platform: "test".into(),
                processor: "test".into(),
                threads: 2,
                finished_at: 0,
            },
        }
    }
}
