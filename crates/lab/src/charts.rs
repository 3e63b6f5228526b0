//! Charts of data and of run records.

use glue::{Dataset, Metric, Targets};
use peft::Method;
use trainer::{Record, TaskData};

use crate::chart::{Axis, Chart, Figure, Mark, Point, Reference, Scale, Series};
use crate::error::Result;
use crate::groups::{Group, by_method, caveats, main_metric, tasks};
pub use crate::page::plotly_js;
use crate::palette::Style;
use crate::text;

/// How often each label occurs, one panel per data set. Scores are counted by their whole part.
///
/// # Errors
/// When a frame was changed and its labels are of another type.
pub fn label_balance(datasets: &[&Dataset]) -> Result<Figure> {
    let mut figure = Figure::new("How often each label occurs");
    for (number, dataset) in datasets.iter().enumerate() {
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
        let point = |(index, &count): (usize, &usize)| {
            let share = 100.0 * count as f64 / total as f64;
            Point::new(index as f64, count as f64).label(format!("{share:.1} %"))
        };
        let points = counts.iter().enumerate().map(point).collect();
        let title = format!("{}, {}", dataset.task, dataset.split);
        let chart = Chart::new(title, Axis::categories("label", names), Axis::new("examples"));
        figure = figure.panel(chart.series(Series::new("", Mark::Bars(0.6), Style::numbered(number), points)));
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
    for (number, data) in data.iter().enumerate() {
        let lengths = data.train.lengths();
        let longest = lengths.iter().max().copied().unwrap_or(0);
        let points = (0..=longest / WIDTH).map(|bin| {
            let count = lengths.iter().filter(|&&length| length / WIDTH == bin).count();
            Point::new((bin * WIDTH + WIDTH / 2) as f64, 100.0 * count as f64 / lengths.len().max(1) as f64)
        });
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len().max(1) as f64;
        let name = format!("{}, {mean:.0} on average", data.task);
        chart = chart.series(Series::new(name, Mark::LineAndMarkers, Style::numbered(number), points.collect()));
    }
    Figure::new("How long the sequences are").panel(chart)
}

/// The training loss of each run, as a running mean, and its validation loss.
pub fn loss_curves(records: &[Record]) -> Figure {
    let mut chart = Chart::new("", Axis::new("epoch"), Axis::new("loss"));
    for record in records {
        let style = Style::of(&record.run.method);
        let validation = record.evaluations.iter().map(|evaluation| Point::new(evaluation.epoch, evaluation.loss));
        chart = chart
            .series(Series::new(format!("{}, training", record.run.method), Mark::Line, style, smoothed(record)))
            .series(Series::new(
                format!("{}, validation", record.run.method),
                Mark::Markers,
                style,
                validation.collect(),
            ));
    }
    with_caveats(Figure::new(title("Loss", records)).panel(chart), records)
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

/// A validation metric over each run, and the baseline.
pub fn metric_curves(records: &[Record], metric: Metric) -> Figure {
    let mut chart = Chart::new("", Axis::new("epoch"), Axis::new(format!("validation {metric}")));
    for record in records {
        let value = |evaluation: &trainer::Evaluation| evaluation.scores.get(metric).unwrap_or(f64::NAN);
        let points = record.evaluations.iter().map(|evaluation| Point::new(evaluation.epoch, value(evaluation)));
        let (name, style) = (record.run.method.to_string(), Style::of(&record.run.method));
        chart = chart.series(Series::new(name, Mark::LineAndMarkers, style, points.collect()));
    }
    for task in tasks(records) {
        let baselines = task.baselines().iter().filter(|baseline| baseline.metric == metric);
        chart.references.extend(baselines.map(|baseline| reference(baseline.value)));
    }
    with_caveats(Figure::new(title("Validation", records)).panel(chart), records)
}

fn reference(value: f64) -> Reference {
    Reference { label: "baseline".into(), y: value, span: None }
}

/// The best score at each learning rate, one line per method. Of the runs of a method, those that share the settings most of
/// them have are taken, so that nothing but the rate differs.
pub fn learning_rate_response(records: &[Record]) -> Figure {
    let metric = tasks(records).first().map_or(Metric::Accuracy, |&task| main_metric(task));
    let rate = Axis::new("learning rate").scale(Scale::Log10);
    let mut chart = Chart::new("", rate, Axis::new(format!("best validation {metric}")));
    for group in by_method(records) {
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
        chart =
            chart.series(Series::new(group.method.to_string(), Mark::LineAndMarkers, Style::of(group.method), points));
    }
    with_caveats(Figure::new(title("Learning-rate response", records)).panel(chart), records)
}

/// The mean over seeds of each method on each task, with its deviation, the single runs, and the baseline.
pub fn comparison(records: &[Record]) -> Figure {
    let mut figure = Figure::new("Methods compared, mean and standard deviation over seeds");
    let groups = by_method(records);
    for task in tasks(records) {
        let metric = main_metric(task);
        let groups: Vec<&Group> = groups.iter().filter(|group| group.task == task).collect();
        let names: Vec<String> = groups.iter().map(|group| group.method.to_string()).collect();
        let lowest = groups.iter().flat_map(|group| group.values(metric)).fold(f64::INFINITY, f64::min);
        let floor = if lowest.is_finite() { ((lowest - 0.05) * 20.0).floor() / 20.0 } else { 0.0 };
        let mut chart = Chart::new(task.name(), Axis::categories("", names), Axis::new(format!("validation {metric}")));
        for (index, group) in groups.iter().enumerate() {
            let (mean, deviation) = group.mean_and_deviation(metric);
            let x = index as f64;
            let point = Point::new(x, mean).deviation(deviation).label(text::score(mean));
            chart = chart.series(Series::new("", Mark::Markers, Style::of(group.method), vec![point]));
            let runs = group.values(metric).into_iter().map(|value| Point::new(x + 0.18, value)).collect();
            chart = chart.series(Series::new("one run", Mark::Markers, Style::PLAIN, runs));
        }
        chart.y = chart.y.range(floor.max(0.0), floor.max(0.0));
        let baselines = task.baselines().iter().filter(|baseline| baseline.metric == metric);
        chart.references.extend(baselines.take(1).map(|baseline| reference(baseline.value)));
        figure = figure.panel(chart);
    }
    with_caveats(figure, records)
}

/// The mean score of each method against the numbers it trains besides the classifier.
pub fn score_against_parameters(records: &[Record]) -> Figure {
    let mut figure = Figure::new("Score against trained parameters");
    let groups = by_method(records);
    for task in tasks(records) {
        let metric = main_metric(task);
        let parameters = Axis::new("trained parameters, without the classifier").scale(Scale::Log10);
        let mut chart = Chart::new(task.name(), parameters, Axis::new(format!("validation {metric}")));
        for group in groups.iter().filter(|group| group.task == task) {
            let (mean, deviation) = group.mean_and_deviation(metric);
            let point = Point::new(group.parameters() as f64, mean).deviation(deviation);
            let (name, style) = (group.method.to_string(), Style::of(group.method));
            chart = chart.series(Series::new(name, Mark::Markers, style, vec![point]));
        }
        let baselines = task.baselines().iter().filter(|baseline| baseline.metric == metric);
        chart.references.extend(baselines.take(1).map(|baseline| reference(baseline.value)));
        figure = figure.panel(chart);
    }
    with_caveats(figure, records)
}

/// The mean score over seeds at each rank of LoRA, and how many numbers each rank trains.
pub fn rank_response(records: &[Record]) -> Figure {
    let metric = tasks(records).first().map_or(Metric::Accuracy, |&task| main_metric(task));
    let groups = by_method(records);
    let rank = |group: &Group| match group.method {
        Method::Lora(lora) => lora.r as f64,
        _ => f64::NAN,
    };
    let style = groups.first().map_or(Style::PLAIN, |group| Style::of(group.method));
    let axis = || Axis::new("rank r").scale(Scale::Log2);
    let scores = groups.iter().map(|group| {
        let (mean, deviation) = group.mean_and_deviation(metric);
        Point::new(rank(group), mean).deviation(deviation)
    });
    let runs = groups
        .iter()
        .flat_map(|group| group.values(metric).into_iter().map(|value| Point::new(rank(group), value)))
        .collect();
    let counts = groups.iter().map(|group| Point::new(rank(group), group.parameters() as f64));
    let performance = Chart::new("Score", axis(), Axis::new(format!("validation {metric}")))
        .series(Series::new("one run", Mark::Markers, Style::PLAIN, runs))
        .series(Series::new("mean over seeds", Mark::LineAndMarkers, style, scores.collect()));
    let size = Chart::new("Parameters", axis(), Axis::new("trained parameters").scale(Scale::Log10))
        .series(Series::new("trained parameters", Mark::LineAndMarkers, Style::numbered(2), counts.collect()));
    with_caveats(Figure::new(title("Rank of LoRA", records)).panel(performance).panel(size), records)
}

/// `what` on the records' tasks.
fn title(what: &str, records: &[Record]) -> String {
    let names: Vec<String> = tasks(records).iter().map(ToString::to_string).collect();
    if names.is_empty() { what.into() } else { format!("{what} on {}", text::list(&names)) }
}

fn with_caveats(figure: Figure, records: &[Record]) -> Figure {
    caveats(records).into_iter().fold(figure, Figure::note)
}
