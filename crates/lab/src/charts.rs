//! Charts of data and of run records: label balance, sequence lengths, loss curves, learning-rate response, comparisons.

use std::collections::BTreeSet;

use glue::{Dataset, Metric, Targets, Task};
use peft::Method;
use trainer::{BiasChange, Record, TaskData};

use crate::chart::{Axis, Chart, Figure, Mark, Point, Series};
use crate::error::Result;
use crate::groups::{Group, by_method, caveats, main_metric, tasks};
use crate::palette::Style;
use crate::text;

/// How often each label occurs, one panel per data set. Scores are counted by their whole part.
///
/// # Errors
/// When a frame was changed and its labels are of another type.
pub fn label_balance(datasets: &[&Dataset]) -> Result<Figure> {
    let mut figure = Figure::new("How often each label occurs");
    for (index, dataset) in datasets.iter().enumerate() {
        let (names, counts) = match dataset.targets()? {
            Some(Targets::Classes(classes)) => {
                let count = |class| classes.iter().filter(|&&label| label == class).count();
                let names: Vec<String> = dataset.task.labels().iter().map(ToString::to_string).collect();
                (names, (0..dataset.task.num_labels()).map(count).collect::<Vec<_>>())
            }
            Some(Targets::Values(values)) => {
                let count = |whole: usize| values.iter().filter(|value| value.floor() as usize == whole).count();
                ((0..=5).map(|whole| whole.to_string()).collect(), (0..=5).map(count).collect())
            }
            None => continue,
        };
        let total: usize = counts.iter().sum::<usize>().max(1);
        let point = |(class, &count): (usize, &usize)| {
            let share = 100.0 * count as f64 / total as f64;
            Point::new(class as f64, count as f64).label(format!("{share:.1} %"))
        };
        let points = counts.iter().enumerate().map(point).collect();
        let title = format!("{}, {}", dataset.task, dataset.split);
        let chart = Chart::new(title, Axis::categories("label", names), Axis::new("examples"));
        figure = figure.panel(chart.series(Series::new("", Mark::Bars, Style::indexed(index), points)));
        if dataset.completeness.is_partial() {
            figure = figure.note(format!("{}: {}", dataset.task, dataset.completeness));
        }
    }
    Ok(figure)
}

/// The share of training sequences of each length, in tokens.
pub fn length_histogram(data: &[&TaskData]) -> Figure {
    const WIDTH: usize = 8;
    let mut chart = Chart::new("", Axis::new("tokens of a sequence"), Axis::new("share of the training set (%)"));
    for (index, data) in data.iter().enumerate() {
        let lengths = data.train.lengths();
        let longest = lengths.iter().max().copied().unwrap_or(0);
        let points = (0..=longest / WIDTH).map(|bin| {
            let count = lengths.iter().filter(|&&length| length / WIDTH == bin).count();
            Point::new((bin * WIDTH + WIDTH / 2) as f64, 100.0 * count as f64 / lengths.len().max(1) as f64)
        });
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len().max(1) as f64;
        let name = format!("{}, {mean:.0} on average", data.task);
        chart = chart.series(Series::new(name, Mark::LineAndMarkers, Style::indexed(index), points.collect()));
    }
    Figure::new("How long the sequences are").panel(chart)
}

/// The training loss of each run, as a running mean, and its validation loss. One panel per task.
pub fn loss_curves(records: &[Record]) -> Figure {
    per_task("Loss", records, |task, groups| {
        let mut chart = Chart::new(task.name(), Axis::new("epoch"), Axis::new("loss"));
        for (group, record) in runs(groups) {
            let (name, style) = (group.name(), || group.style.clone());
            let validation = record.evaluations.iter().map(|evaluation| Point::new(evaluation.epoch, evaluation.loss));
            chart = chart
                .series(Series::new(format!("{name}, training"), Mark::Line, style(), smoothed(record)))
                .series(Series::new(format!("{name}, validation"), Mark::Markers, style(), validation.collect()));
        }
        chart
    })
}

/// The running mean of a run's step losses, with weight 0.9 on the past and corrected for its start; at most 200 points.
fn smoothed(record: &Record) -> Vec<Point> {
    const PAST: f64 = 0.9;
    let every = record.losses.len().div_ceil(200).max(1);
    let (mut mean, mut weight) = (0.0, 0.0);
    let mut points = Vec::new();
    for (index, step) in record.losses.iter().enumerate() {
        mean = PAST * mean + (1.0 - PAST) * step.loss;
        weight = PAST * weight + (1.0 - PAST);
        if index % every == 0 || index + 1 == record.losses.len() {
            points.push(Point::new(step.epoch, mean / weight));
        }
    }
    points
}

/// A validation metric over each run, and the baseline. One panel per task.
pub fn metric_curves(records: &[Record], metric: Metric) -> Figure {
    per_task("Validation", records, |task, groups| {
        let mut chart = Chart::new(task.name(), Axis::new("epoch"), Axis::new(format!("validation {metric}")));
        for (group, record) in runs(groups) {
            let value = |evaluation: &trainer::Evaluation| evaluation.scores.get(metric).unwrap_or(f64::NAN);
            let points = record.evaluations.iter().map(|evaluation| Point::new(evaluation.epoch, value(evaluation)));
            chart =
                chart.series(Series::new(group.name(), Mark::LineAndMarkers, group.style.clone(), points.collect()));
        }
        with_baseline(chart, task, metric)
    })
}

/// The best score at each learning rate, one line per method, one panel per task. Of the runs of a method, those that share the
/// other settings of its first are taken, so that nothing but the rate differs.
pub fn learning_rate_response(records: &[Record]) -> Figure {
    per_task("Learning-rate response", records, |task, groups| {
        let metric = main_metric(task);
        let mut chart =
            Chart::new(task.name(), Axis::log("learning rate"), Axis::new(format!("best validation {metric}")));
        for group in groups {
            let first = &group.records[0].run.settings;
            let same = |record: &&&Record| {
                let settings = &record.run.settings;
                (settings.batch_size, settings.warmup_ratio) == (first.batch_size, first.warmup_ratio)
            };
            let mut points: Vec<Point> = group
                .records
                .iter()
                .filter(same)
                .map(|record| Point::new(record.run.settings.learning_rate, record.best_metric(metric)))
                .collect();
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            chart = chart.series(Series::new(group.name(), Mark::LineAndMarkers, group.style.clone(), points));
        }
        chart
    })
}

/// How far BitFit has moved the biases of each module, by layer ([`BiasChange`]). One panel for each task.
pub fn bias_changes(tasks: &[(Task, Vec<BiasChange>)]) -> Figure {
    let mut figure = Figure::new("How far BitFit moved the biases");
    for (task, changes) in tasks {
        let mut chart = Chart::new(task.name(), Axis::new("layer"), Axis::new("mean change of a bias"));
        let mut modules: Vec<&str> = Vec::new();
        for change in changes {
            if !modules.contains(&change.module.as_str()) {
                modules.push(&change.module);
            }
        }
        for (index, module) in modules.into_iter().enumerate() {
            let of_module = changes.iter().filter(|change| change.module == module);
            let points = of_module.map(|change| Point::new(change.layer as f64 + 1.0, change.change)).collect();
            chart = chart.series(Series::new(module, Mark::LineAndMarkers, Style::indexed(index), points));
        }
        figure = figure.panel(chart);
    }
    figure
}

/// The mean over seeds of each method on each task, with its deviation, the single runs, and the baseline.
pub fn comparison(records: &[Record]) -> Figure {
    let mut figure = Figure::new("Methods compared, mean and standard deviation over seeds");
    let groups = by_method(records);
    for task in tasks(records) {
        let metric = main_metric(task);
        let groups: Vec<&Group> = groups.iter().filter(|group| group.task == task).collect();
        let names: Vec<String> = groups.iter().map(|group| group.name()).collect();
        let mut chart = Chart::new(task.name(), Axis::categories("", names), Axis::new(format!("validation {metric}")));
        for (index, group) in groups.iter().enumerate() {
            let (mean, deviation) = group.mean_and_deviation(metric);
            let x = index as f64;
            let point = Point::new(x, mean).deviation(deviation).label(text::score(mean));
            chart = chart.series(Series::new("", Mark::Markers, group.style.clone(), vec![point]));
            let runs = group.values(metric).into_iter().map(|value| single_run(x + 0.25, value)).collect();
            chart = chart.series(Series::new("one run", Mark::Markers, Style::single_run(), runs));
        }
        figure = figure.panel(with_baseline(chart, task, metric));
    }
    with_caveats(with_mixtures(figure, &groups), records)
}

/// The mean score of each method against the numbers it trains besides the classifier.
pub fn score_against_parameters(records: &[Record]) -> Figure {
    let mut figure = Figure::new("Score against trained parameters");
    let groups = by_method(records);
    for task in tasks(records) {
        let metric = main_metric(task);
        let parameters = Axis::log("trained parameters, without the classifier");
        let mut chart = Chart::new(task.name(), parameters, Axis::new(format!("validation {metric}")));
        for group in groups.iter().filter(|group| group.task == task) {
            let (mean, deviation) = group.mean_and_deviation(metric);
            let point = Point::new(group.parameters() as f64, mean).deviation(deviation);
            chart = chart.series(Series::new(group.name(), Mark::Markers, group.style.clone(), vec![point]));
        }
        figure = figure.panel(with_baseline(chart, task, metric));
    }
    with_caveats(with_mixtures(figure, &groups), records)
}

/// The mean score of each method against the numbers it trains, the classifier's among them, and the time it takes: the area of a mark
/// is the training time, of which the legend gives the share of the slowest method's.
pub fn methods(records: &[Record]) -> Figure {
    let mut figure = Figure::new(title("Every method", records))
        .note("number: place in the legend; area of a mark, and number in parentheses: training time, as a share of the longest");
    let gpus: BTreeSet<_> = records.iter().map(|record| &record.environment.gpu).collect();
    if gpus.len() > 1 {
        figure = figure.note("runs were made by different processors: their times do not compare");
    }
    let groups = by_method(records);
    for task in tasks(records) {
        let metric = main_metric(task);
        let parameters = Axis::log("trained parameters, with the classifier");
        let mut chart = Chart::new(task.name(), parameters, Axis::new(format!("validation {metric}")));
        let groups: Vec<&Group> = groups.iter().filter(|group| group.task == task).collect();
        let longest = groups.iter().map(|group| group.seconds()).fold(0.0, f64::max);
        for (index, group) in groups.iter().enumerate() {
            let (mean, deviation) = group.mean_and_deviation(metric);
            let (number, share) = (index + 1, group.seconds() / longest);
            let point = Point::new(group.records[0].parameters.trainable as f64, mean);
            let point = point.deviation(deviation).size(LARGEST * share).label(number.to_string());
            let name = format!("{number} {} ({share:.2})", group.name());
            chart = chart.series(Series::new(name, Mark::Markers, group.style.clone(), vec![point]));
        }
        figure = figure.panel(with_baseline(chart, task, metric));
    }
    with_caveats(with_mixtures(figure, &groups), records)
}

/// The area of the mark of the method that takes longest, as a multiple of the usual.
const LARGEST: f64 = 5.0;

/// The mean score over seeds at each rank of LoRA, one panel per task, and how many numbers each rank trains. Runs of other
/// methods are no part of it.
pub fn rank_response(records: &[Record]) -> Figure {
    let by_rank = |task| {
        let mut groups: Vec<(f64, Group)> = Vec::new();
        for group in by_method(records).into_iter().filter(|group| group.task == task) {
            if let Method::Lora(lora) = group.method {
                groups.push((lora.r as f64, group));
            }
        }
        groups.sort_by(|a, b| a.0.total_cmp(&b.0));
        groups
    };
    let axis = |groups: &[(f64, Group)]| Axis::log("rank r").marked_at(groups.iter().map(|(rank, _)| *rank));
    let mut figure = Figure::new(title("Rank of LoRA", records));
    let tasks = tasks(records);
    for &task in &tasks {
        let (metric, groups) = (main_metric(task), by_rank(task));
        let name = if tasks.len() == 1 { "Score" } else { task.name() };
        let runs = groups
            .iter()
            .flat_map(|(rank, group)| group.values(metric).into_iter().map(|value| single_run(*rank, value)))
            .collect();
        let means = groups.iter().map(|(rank, group)| {
            let (mean, deviation) = group.mean_and_deviation(metric);
            Point::new(*rank, mean).deviation(deviation)
        });
        let style = groups.first().map_or(Style::single_run(), |(_, group)| Style::of(group.method));
        let chart = Chart::new(name, axis(&groups), Axis::new(format!("validation {metric}")))
            .series(Series::new("one run", Mark::Markers, Style::single_run(), runs))
            .series(Series::new("mean over seeds", Mark::LineAndMarkers, style, means.collect()));
        figure = with_mixtures(figure.panel(chart), groups.iter().map(|(_, group)| group));
    }
    // A rank trains as many numbers on one task as on another.
    if let Some(&task) = tasks.first() {
        let groups = by_rank(task);
        let counts = groups.iter().map(|(rank, group)| Point::new(*rank, group.parameters() as f64)).collect();
        let chart = Chart::new("Parameters", axis(&groups), Axis::log("trained parameters")).series(Series::new(
            "trained parameters",
            Mark::LineAndMarkers,
            Style::indexed(2),
            counts,
        ));
        figure = figure.panel(chart);
    }
    with_caveats(figure, records)
}

/// The mark of a run beside its method's mean, smaller than that.
fn single_run(x: f64, y: f64) -> Point {
    Point::new(x, y).size(0.5)
}

/// A figure with the chart of each task.
fn per_task(what: &str, records: &[Record], chart: impl Fn(Task, &[&Group]) -> Chart) -> Figure {
    let groups = by_method(records);
    let figure = tasks(records).into_iter().fold(Figure::new(title(what, records)), |figure, task| {
        let of_task: Vec<&Group> = groups.iter().filter(|group| group.task == task).collect();
        figure.panel(chart(task, &of_task))
    });
    with_caveats(figure, records)
}

/// Each run with its group.
fn runs<'a>(groups: &'a [&'a Group<'a>]) -> impl Iterator<Item = (&'a Group<'a>, &'a Record)> {
    groups.iter().flat_map(|group| group.records.iter().map(move |record| (*group, *record)))
}

/// With the task's baseline in this metric, on the split that models are chosen by.
fn with_baseline(chart: Chart, task: Task, metric: Metric) -> Chart {
    match task.baselines().iter().find(|baseline| baseline.metric == metric) {
        Some(baseline) => chart.reference("baseline", baseline.value, None),
        None => chart,
    }
}

fn with_mixtures<'a>(figure: Figure, groups: impl IntoIterator<Item = &'a Group<'a>>) -> Figure {
    groups.into_iter().filter_map(|group| group.mixture()).fold(figure, Figure::note)
}

/// `what` on the records' tasks.
fn title(what: &str, records: &[Record]) -> String {
    let names: Vec<String> = tasks(records).iter().map(ToString::to_string).collect();
    if names.is_empty() { what.into() } else { format!("{what} on {}", text::list(&names)) }
}

/// With what must stand beside the scores: which means are not of all runs, and which data is not whole.
fn with_caveats(figure: Figure, records: &[Record]) -> Figure {
    let figure = by_method(records).iter().filter_map(|group| group.gap()).fold(figure, Figure::note);
    caveats(records).into_iter().fold(figure, Figure::note)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::tests::record;

    #[test]
    fn every_chart_of_scores_carries_the_caveats_of_its_data() {
        let records = [record(Task::Synthetic, Method::lora(8), 1, 0.8), record(Task::Mrpc, Method::lora(8), 1, 0.8)];
        for figure in [
            loss_curves(&records),
            metric_curves(&records, Metric::Accuracy),
            learning_rate_response(&records),
            comparison(&records),
            score_against_parameters(&records),
            rank_response(&records),
            methods(&records),
        ] {
            assert_eq!(
                figure.notes.last().into_iter().collect::<Vec<_>>(),
                ["Synthetic: synthetic data"],
                "{}",
                figure.title
            );
            let notes = figure.plotly_json().unwrap()["layout"]["title"]["subtitle"]["text"].to_string();
            assert!(notes.contains("Synthetic: synthetic data"), "{notes}");
        }
    }

    #[test]
    fn every_chart_of_scores_says_of_how_many_seeds_a_mean_is_where_one_diverged() {
        let mut records = [1, 2, 3].map(|seed| record(Task::Rte, Method::lora(8), seed, 0.8));
        (records[1].stop, records[1].best) = (trainer::Stop::Diverged, None);
        for figure in [
            loss_curves(&records),
            metric_curves(&records, Metric::Accuracy),
            learning_rate_response(&records),
            comparison(&records),
            score_against_parameters(&records),
            rank_response(&records),
            methods(&records),
            crate::benchmark::chart(&records),
        ] {
            assert!(figure.all_notes().contains(&"RTE, LoRA r=8: 2 of 3 seeds, 1 diverged".into()), "{}", figure.title);
        }
    }

    #[test]
    fn the_comparison_has_the_mean_the_deviation_and_each_run() {
        let records =
            [0.89, 0.90, 0.91].map(|score| record(Task::Sst2, Method::bitfit(), (score * 100.0) as u64, score));
        let figure = comparison(&records);
        let chart = &figure.panels[0];
        let mean = &chart.series[0].points[0];
        assert!((mean.y - 0.9).abs() < 1e-12 && (mean.deviation - 0.01).abs() < 1e-12, "{mean:?}");
        let runs: Vec<f64> = chart.series[1].points.iter().map(|point| point.y).collect();
        assert_eq!(runs, [0.89, 0.90, 0.91]);
        assert_eq!(chart.references[0].y, 0.88);
    }

    #[test]
    fn a_methods_mark_has_the_area_of_its_training_time() {
        let mut records = [Method::lora(8), Method::bitfit()].map(|method| record(Task::Sst2, method, 1, 0.9));
        records[0].train_seconds = 3.0 * records[1].train_seconds;
        let series = &methods(&records).panels[0].series;
        assert_eq!(series[0].points[0].size, 3.0 * series[1].points[0].size);
        assert_eq!((series[0].name.as_str(), series[1].name.as_str()), ("1 LoRA r=8 (1.00)", "2 BitFit (0.33)"));
    }

    #[test]
    fn lora_plus_is_a_method_of_its_own() {
        let plain = record(Task::Sst2, Method::lora(8), 1, 0.9);
        let mut plus = plain.clone();
        plus.run.settings.loraplus_lr_ratio = Some(16.0);
        let names: Vec<String> = methods(&[plain, plus]).panels[0].series.iter().map(|s| s.name.clone()).collect();
        assert_eq!(names, ["1 LoRA r=8 (1.00)", "2 LoRA r=8, LoRA+ 16 (1.00)"]);
    }

    #[test]
    fn no_two_methods_of_a_chart_look_alike_and_each_looks_the_same_on_every_task() {
        let mut records = Vec::new();
        for task in [Task::Sst2, Task::Mrpc] {
            records.push(record(task, Method::Full, 1, 0.9));
            records.extend([1, 8, 64].map(|r| record(task, Method::lora(r), 1, 0.9)));
            let mut plus = record(task, Method::lora(8), 1, 0.9);
            plus.run.settings.loraplus_lr_ratio = Some(16.0);
            records.push(plus);
        }
        // In another order on the second task.
        records[5..].reverse();
        for figure in [learning_rate_response(&records), score_against_parameters(&records), methods(&records)] {
            let styles = |panel: usize| -> Vec<&Style> {
                figure.panels[panel].series.iter().map(|series| &series.style).collect()
            };
            let (first, mut second) = (styles(0), styles(1));
            second.reverse();
            assert_eq!(first, second, "{}", figure.title);
            for (index, style) in first.iter().enumerate() {
                assert!(!first[..index].contains(style), "{}: {style:?} twice", figure.title);
            }
        }
    }

    #[test]
    fn tasks_are_not_mixed_in_one_panel() {
        let records: Vec<Record> = [Task::Sst2, Task::Mrpc]
            .into_iter()
            .flat_map(|task| [1, 8].map(|r| record(task, Method::lora(r), 1, 0.8)))
            .chain([record(Task::Mrpc, Method::Full, 1, 0.8)])
            .collect();
        let titles = |figure: &Figure| figure.panels.iter().map(|chart| chart.title.clone()).collect::<Vec<_>>();
        assert_eq!(titles(&loss_curves(&records)), ["SST-2", "MRPC"]);
        let ranks = rank_response(&records);
        assert_eq!(titles(&ranks), ["SST-2", "MRPC", "Parameters"]);
        let means = |chart: &Chart| chart.series[1].points.iter().map(|point| point.x).collect::<Vec<_>>();
        assert_eq!((means(&ranks.panels[0]), means(&ranks.panels[1])), (vec![1.0, 8.0], vec![1.0, 8.0]));
    }

    #[test]
    fn the_changes_of_biases_are_a_line_for_each_module_over_the_layers() {
        let change = |layer, module: &str, change| BiasChange { layer, module: module.into(), change };
        let changes =
            vec![change(0, "query", 0.1), change(0, "output", 0.3), change(1, "query", 0.2), change(1, "output", 0.4)];
        let figure = bias_changes(&[(Task::Sst2, changes)]);
        let lines: Vec<(&str, Vec<(f64, f64)>)> = figure.panels[0]
            .series
            .iter()
            .map(|series| (series.name.as_str(), series.points.iter().map(|point| (point.x, point.y)).collect()))
            .collect();
        assert_eq!(lines, [("query", vec![(1.0, 0.1), (2.0, 0.2)]), ("output", vec![(1.0, 0.3), (2.0, 0.4)])]);
    }

    #[test]
    fn a_constant_loss_stays_constant_when_smoothed() {
        let mut record = record(Task::Sst2, Method::Full, 1, 0.9);
        record.losses.iter_mut().for_each(|step| step.loss = 0.25);
        let points = smoothed(&record);
        assert!(points.len() > 100 && points.iter().all(|point| (point.y - 0.25).abs() < 1e-12));
        assert_eq!(points.last().unwrap().x, record.losses.last().unwrap().epoch);
    }

    #[test]
    fn a_diverged_run_is_left_out_and_counted() {
        let mut record = record(Task::Sst2, Method::Full, 1, 0.9);
        record.best = None;
        let notes = learning_rate_response(&[record]).all_notes();
        assert!(notes.iter().any(|note| note.contains("1 value is left out")), "{notes:?}");
    }

    #[test]
    fn the_label_balance_counts_each_label() {
        let glue = glue::Glue::synthetic("a test");
        let train = glue.load(Task::Synthetic, glue::Split::Train).unwrap();
        let figure = label_balance(&[&train]).unwrap();
        let counted: f64 = figure.panels[0].series[0].points.iter().map(|point| point.y).sum();
        assert_eq!(counted, train.len() as f64);
    }
}
