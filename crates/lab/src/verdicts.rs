//! Verdicts on methods: sentences for the text beside charts, and the numbers behind them as a table.

use trainer::numbers::{p_value, points, signed_points};
use trainer::statistics::Interval;
use trainer::summary::Summary;
use trainer::verdict::{AgainstBaseline, Evidence, OverSeeds, Verdict};
use trainer::{Predictions, Record};

use crate::groups::{by_method, caveats};
use crate::table::Table;

/// What these records allow to say of each two methods of a task, a sentence for each, corrected together: for the caption of a chart. Without
/// the predictions of all runs it rests on their scores alone.
pub fn verdict(records: &[Record], predictions: &[Predictions]) -> String {
    let sentences: Vec<String> = of(records, predictions).iter().map(|verdict| format!("{verdict}.")).collect();
    sentences.join(" ")
}

/// One row for each two methods of a task: by how much they differ, and the verdict. `ε_min` is of Almost Stochastic Order: near 0 the method with
/// the higher mean is nearly always above, from 0.5 on it is not.
pub fn table(records: &[Record], predictions: &[Predictions]) -> Table {
    let mut table = Table::new([
        "task",
        "methods",
        "metric",
        "difference (points)",
        "95 % interval",
        "over seeds and examples",
        "p",
        "p after Holm",
        "smallest visible",
        "ε_min",
        "verdict",
    ]);
    let interval = |Interval { low, high }| format!("{} to {}", points(low), points(high));
    let dash = || String::from("–");
    for verdict in of(records, predictions) {
        let [first, second] = &verdict.methods;
        let (difference, found, resampled, dominance) = match &verdict.evidence {
            Evidence::Seeds(seeds @ OverSeeds { difference, resampled, .. }) => (
                signed_points(difference.value),
                interval(difference.interval()),
                resampled.map_or_else(dash, |resampled| interval(resampled.interval)),
                seeds.dominance().map_or_else(dash, |bound| format!("{bound:.2}")),
            ),
            _ => (dash(), dash(), dash(), dash()),
        };
        table.push_long([
            verdict.task.to_string(),
            format!("{first}, {second}"),
            verdict.metric.to_string(),
            difference,
            found,
            resampled,
            verdict.evidence.p_value().map_or_else(dash, p_value),
            verdict.p_value().map_or_else(dash, p_value),
            verdict.smallest_visible().map_or_else(dash, points),
            dominance,
            verdict.to_string(),
        ]);
    }
    table.note("smallest visible: the difference that these seeds would show in four of five cases, beside the other comparisons");
    noted(table, records)
}

/// One row for each method and baseline of a task: the mean over seeds, its interval, and whether all of that is above.
pub fn baselines(records: &[Record]) -> Table {
    let mut table = Table::new(["task", "method", "verdict"]);
    for against in by_method(records).iter().flat_map(|group| AgainstBaseline::of(&group.summary)) {
        table.push_long([against.task.to_string(), against.method.clone(), against.to_string()]);
    }
    noted(table, records)
}

/// Of each two methods of a task, corrected together.
pub(crate) fn of(records: &[Record], predictions: &[Predictions]) -> Vec<Verdict> {
    let summaries: Vec<Summary> = by_method(records).into_iter().map(|group| group.summary).collect();
    Verdict::of_all(&summaries, predictions)
}

fn noted(mut table: Table, records: &[Record]) -> Table {
    caveats(records).into_iter().for_each(|caveat| table.note(caveat));
    table
}

#[cfg(test)]
mod tests {
    use glue::{Completeness, Task};
    use peft::Method;

    use super::*;
    use crate::groups::tests::record;
    use crate::tables::tests::column;

    fn records() -> Vec<Record> {
        let of = |method: Method, scores: [f64; 3]| {
            let seeded = move |(index, score)| record(Task::Rte, method.clone(), index as u64 + 1, score);
            scores.into_iter().enumerate().map(seeded).collect::<Vec<_>>()
        };
        [of(Method::lora(8), [0.80, 0.81, 0.79]), of(Method::bitfit(), [0.70, 0.715, 0.69])].concat()
    }

    #[test]
    fn the_caption_says_which_method_is_better_and_the_table_by_how_much() {
        let text = verdict(&records(), &[]);
        assert!(text.starts_with("On RTE LoRA r=8 is better than BitFit: +9.8 points of accuracy, "), "{text}");
        assert!(text.ends_with("three seeds."), "{text}");
        let table = table(&records(), &[]);
        assert_eq!(column(&table, "difference (points)"), ["+9.8"]);
        assert_eq!(
            (column(&table, "ε_min"), column(&table, "over seeds and examples")),
            (vec!["0.00".into()], vec!["–".into()])
        );
    }

    #[test]
    fn of_one_seed_each_the_caption_says_that_nothing_can_be_said() {
        let records = records();
        let text = verdict(&[records[0].clone(), records[3].clone()], &[]);
        assert_eq!(text, "On RTE nothing can be said of LoRA r=8 and BitFit from one seed each.");
    }

    #[test]
    fn each_method_is_judged_against_the_baseline_and_what_is_partial_stands_below() {
        let mut records = records();
        records.iter_mut().for_each(|record| {
            record.data.train = Completeness { found: 100, official: Some(2490), extra: None };
        });
        let table = baselines(&records);
        let verdicts = column(&table, "verdict");
        assert!(verdicts[0].starts_with("On RTE LoRA r=8 is above the baseline of 70.0 points"), "{}", verdicts[0]);
        assert!(verdicts[1].starts_with("On RTE BitFit is not shown to be above the baseline"), "{}", verdicts[1]);
        assert!(table.to_text().contains("RTE: train 100 of 2490 (partial)"));
    }
}
