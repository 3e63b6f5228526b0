//! Records that belong together.

use glue::{Metric, Task};
use peft::Method;
use trainer::Record;
use trainer::statistics::mean_and_deviation;

/// The runs of one method on one task.
pub(crate) struct Group<'a> {
    pub task: Task,
    pub method: &'a Method,
    pub records: Vec<&'a Record>,
}

impl Group<'_> {
    /// The best value of each run.
    pub fn values(&self, metric: Metric) -> Vec<f64> {
        self.records.iter().map(|record| record.best_metric(metric)).collect()
    }

    /// Over the runs.
    pub fn mean_and_deviation(&self, metric: Metric) -> (f64, f64) {
        mean_and_deviation(&self.values(metric))
    }

    /// Numbers trained besides the classifier's.
    pub fn parameters(&self) -> usize {
        self.records[0].parameters.without_head
    }
}

/// Records by task and method, both in the order in which they first appear.
pub(crate) fn by_method(records: &[Record]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    for record in records {
        let (task, method) = (record.run.task, &record.run.method);
        match groups.iter_mut().find(|group| group.task == task && group.method == method) {
            Some(group) => group.records.push(record),
            None => groups.push(Group { task, method, records: vec![record] }),
        }
    }
    groups
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
