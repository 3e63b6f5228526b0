//! Tables of data and of run records: tokenization, trained parameters, runs, comparisons, findings.

use std::collections::BTreeSet;
use std::path::Path;

use glue::{Example, Glue, Task};
use peft::{Method, Precision, TrainableReport, thousands};
use trainer::study::Search;
use trainer::{Record, Tokenizer, Trainer};

use crate::groups::{baseline, by_method, caveats, main_metric, tasks};
use crate::plan::Plan;
use crate::table::Table;
use crate::{text, verdicts};

/// What the notebook runs with: versions, processor, data, profile.
pub fn setup(trainer: &Trainer, plan: &Plan) -> Table {
    let environment = trainer::environment();
    let mut table = Table::new(["", ""]);
    table.push(["profile", &format!("{}: {}", plan.profile.name(), plan.profile.purpose())]);
    table.push(["data", &trainer.glue().origin().to_string()]);
    table.push(["model", &plan.model]);
    table.push(["processor", &format!("{}, {} threads", environment.processor, environment.threads)]);
    table.push(["version", &environment.version]);
    table
}

/// The splits of some tasks, with their sizes.
///
/// # Errors
/// When a file is broken.
pub fn data(glue: &Glue, tasks: &[Task]) -> glue::Result<Table> {
    let mut table = Table::new(["task", "split", "rows", "labels", "metrics", "baseline"]);
    for &task in tasks {
        let labels = if task.is_regression() { "a score from 0 to 5".into() } else { task.labels().join(", ") };
        let metrics = task.metrics().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let baselines: Vec<String> = task.baselines().iter().map(|b| format!("{} {}", b.metric, b.value)).collect();
        for split in glue.splits(task) {
            let rows = glue.load(task, split)?.completeness.to_string();
            table.push([task.name(), &split.to_string(), &rows, &labels, &metrics, &baselines.join(", ")]);
        }
        if task == Task::Synthetic {
            table.note("Synthetic: made by this project, because no GLUE was found. Its scores are no benchmark's.");
        }
    }
    Ok(table)
}

/// The word pieces of some examples.
///
/// # Errors
/// When the tokenizer fails.
pub fn pieces(tokenizer: &Tokenizer, examples: &[Example]) -> trainer::Result<Table> {
    let mut table = Table::new(["text", "word pieces", "tokens"]);
    for example in examples {
        let pieces = tokenizer.pieces(example)?;
        let text =
            std::iter::once(example.first.as_str()).chain(example.second.as_deref()).collect::<Vec<_>>().join(" / ");
        table.push_long([text, pieces.join(" "), pieces.len().to_string()]);
    }
    Ok(table)
}

/// How much each method trains.
pub fn trainable(reports: &[(Method, TrainableReport)]) -> Table {
    let mut table =
        Table::new(["method", "tensors", "trained parameters", "without the classifier", "share of the model"]);
    for (method, report) in reports {
        table.push([
            method.to_string(),
            report.tensors.len().to_string(),
            thousands(report.trainable()),
            thousands(report.trainable_without_head()),
            format!("{:.2} %", report.percent()),
        ]);
    }
    table
}

/// The first tensors of a report, by name.
pub fn tensors(report: &TrainableReport, rows: usize) -> Table {
    let mut table = Table::new(["parameter", "shape", "numbers"]);
    for tensor in report.tensors.iter().take(rows) {
        table.push([tensor.name.clone(), format!("{:?}", tensor.shape), thousands(tensor.count())]);
    }
    if report.tensors.len() > rows {
        table.note(format!("and {} more", report.tensors.len() - rows));
    }
    table
}

/// One row per run: settings, the best score, time.
pub fn runs(records: &[Record]) -> Table {
    let mut table = Table::new([
        "task",
        "method",
        "learning rate",
        "batch",
        "warm-up",
        "seed",
        "metric",
        "best",
        "at epoch",
        "training",
        "tokens/s",
    ]);
    for record in records {
        let (run, metric) = (&record.run, main_metric(record.run.task));
        let epoch = record.best.as_ref().map_or("–".into(), |best| format!("{:.2}", best.epoch));
        table.push([
            run.task.to_string(),
            run.method_name(),
            text::small(run.settings.learning_rate),
            run.settings.batch_size.to_string(),
            text::small(run.settings.warmup_ratio),
            run.seed.to_string(),
            metric.to_string(),
            text::score(record.best_metric(metric)),
            epoch,
            text::duration(record.train_seconds),
            format!("{:.0}", record.tokens_per_second()),
        ]);
        if !matches!(record.stop, trainer::Stop::Finished | trainer::Stop::Diverged) {
            table.note(format!("{} seed {}: {}", run.method_name(), run.seed, record.stop));
        }
    }
    noted(table, records)
}

/// The runs of a search, the best of each method first.
pub fn search(records: &[Record]) -> Table {
    let mut sorted: Vec<Record> = records.to_vec();
    let groups = by_method(records);
    let place = |record: &Record| groups.iter().position(|group| group.records[0].run.has_method_of(&record.run));
    // A score that is not a number is the lowest of all.
    let score =
        |record: &Record| Some(record.best_score()).filter(|score| score.is_finite()).unwrap_or(f64::NEG_INFINITY);
    sorted.sort_by(|a, b| place(a).cmp(&place(b)).then(score(b).total_cmp(&score(a))));
    runs(&sorted)
}

/// The best settings of each search.
pub fn best_settings(searches: &[Search]) -> Table {
    let mut table = Table::new(["method", "learning rate", "batch", "warm-up", "metric", "best"]);
    for search in searches {
        let Some(record) = search.records.iter().find(|record| record.run == search.best) else { continue };
        let (run, metric) = (&record.run, main_metric(record.run.task));
        table.push([
            run.method_name(),
            text::small(run.settings.learning_rate),
            run.settings.batch_size.to_string(),
            text::small(run.settings.warmup_ratio),
            metric.to_string(),
            text::score(record.best_metric(metric)),
        ]);
    }
    let records: Vec<Record> = searches.iter().flat_map(|search| search.records.clone()).collect();
    noted(table, &records)
}

/// One row per task and method: mean and deviation over seeds in each metric, against the baseline.
pub fn comparison(records: &[Record]) -> Table {
    let mut table = Table::new([
        "task",
        "method",
        "parameters",
        "seeds",
        "metric",
        "mean ± deviation",
        "baseline",
        "above",
        "training per run",
    ]);
    for group in by_method(records) {
        for &split in group.task.validation_splits() {
            for &metric in group.task.metrics() {
                let baseline = baseline(group.task, split, metric);
                let other = group.task.validation_splits().first() != Some(&split);
                table.push([
                    group.task.to_string(),
                    group.name(),
                    thousands(group.parameters()),
                    group.seeds(),
                    if other { format!("{metric}, {split}") } else { metric.to_string() },
                    group.score_on(split, metric),
                    baseline.map_or("–".into(), |baseline| baseline.value.to_string()),
                    baseline.map_or("–", |baseline| text::yes_or_no(group.is_above(baseline))).to_string(),
                    group.training_time(),
                ]);
            }
        }
        group.mixture().into_iter().for_each(|mixture| table.note(mixture));
    }
    noted(table, records)
}

/// One row per task and method, with its number in [`charts::methods`](crate::charts::methods): what it trains, at which learning rate,
/// how well and how long.
pub fn methods(records: &[Record]) -> Table {
    let mut table = Table::new([
        "",
        "method",
        "trained parameters",
        "share of the model",
        "learning rate",
        "mean ± deviation",
        "training per run",
    ]);
    for task in tasks(records) {
        let metric = main_metric(task);
        for (index, group) in by_method(records).into_iter().filter(|group| group.task == task).enumerate() {
            let record = group.records[0];
            let trained = record.parameters.trainable;
            table.push([
                (index + 1).to_string(),
                group.name(),
                thousands(trained),
                group.share_of_model(trained),
                text::small(record.run.settings.learning_rate),
                group.score(metric),
                group.training_time(),
            ]);
            group.mixture().into_iter().for_each(|mixture| table.note(mixture));
        }
        let seeds = records.iter().filter(|record| record.run.task == task).map(|record| record.run.seed);
        let seeds = seeds.collect::<BTreeSet<_>>().len();
        table.note(format!(
            "{task}: {metric} on the validation set; runs with {seeds} seed{}",
            if seeds == 1 { "" } else { "s" }
        ));
    }
    noted(table, records)
}

/// One row per rank.
pub fn ranks(records: &[Record]) -> Table {
    let mut table = Table::new(["method", "parameters", "share of the model", "seeds", "metric", "mean ± deviation"]);
    for group in by_method(records) {
        let metric = main_metric(group.task);
        table.push([
            group.name(),
            thousands(group.parameters()),
            group.share_of_model(group.parameters()),
            group.seeds(),
            metric.to_string(),
            group.score(metric),
        ]);
    }
    noted(table, records)
}

/// Files with their first lines.
///
/// # Errors
/// When one cannot be read.
pub fn files<P: AsRef<Path>>(paths: &[P]) -> crate::Result<Table> {
    let mut table = Table::new(["file", "predictions", "the first"]);
    for path in paths {
        let path = path.as_ref();
        let content =
            std::fs::read_to_string(path).map_err(|source| crate::Error::File { path: path.to_path_buf(), source })?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let first: Vec<&str> = content.lines().skip(1).take(8).filter_map(|line| line.split('\t').nth(1)).collect();
        table.push([name, content.lines().skip(1).count().to_string(), first.join(", ")]);
    }
    Ok(table)
}

/// What the study found, each finding computed from its records.
pub fn findings(searches: &[Search], compared: &[Record], ranked: &[Record]) -> Table {
    let mut table = Table::new(["question", "answer"]);
    let groups = by_method(compared);
    for task in tasks(compared) {
        for baseline in task.baselines() {
            let of_task = groups.iter().filter(|group| group.task == task);
            let answers: Vec<String> = of_task
                .map(|group| {
                    let score = group.score_on(baseline.split, baseline.metric);
                    format!("{} {score}, {}", group.name(), text::yes_or_no(group.is_above(baseline)))
                })
                .collect();
            let question = format!("{task}: is {} above the baseline of {}?", baseline.metric, baseline.value);
            table.push([question, answers.join("; ")]);
        }
    }
    for search in searches {
        let settings = &search.best.settings;
        let [rate, warmup] = [settings.learning_rate, settings.warmup_ratio].map(text::small);
        let answer = format!("learning rate {rate}, batches of {}, warm-up {warmup}", settings.batch_size);
        table.push([format!("{}: best settings found", search.best.method_name()), answer]);
    }
    let rate = |name: &str| {
        let search = searches.iter().find(|search| search.best.method.id() == name)?;
        Some(search.best.settings.learning_rate)
    };
    if let (Some(full), Some(lora), Some(bitfit)) = (rate("full"), rate("lora"), rate("bitfit")) {
        // Two digits: the rates that were tried lie threefold apart.
        let times = |rate: f64| format!("{} times", format!("{:.1e}", rate / full).parse().unwrap_or(rate / full));
        let answer = format!("LoRA {} and BitFit {} that of full fine-tuning", times(lora), times(bitfit));
        table.push(["best learning rate found", &answer]);
    }
    for verdict in verdicts::of(compared, &[]) {
        let [first, second] = &verdict.methods;
        table.push_long([format!("{}: {first} against {second}", verdict.task), verdict.to_string()]);
    }
    let means: Vec<(String, f64)> = by_method(ranked)
        .iter()
        .map(|group| (group.name(), group.mean_and_deviation(main_metric(group.task)).0))
        .filter(|(_, mean)| mean.is_finite())
        .collect();
    let by_mean = |a: &&(String, f64), b: &&(String, f64)| a.1.total_cmp(&b.1);
    if let (Some(worst), Some(best)) = (means.iter().min_by(by_mean), means.iter().max_by(by_mean)) {
        let answer = format!(
            "best {} ({}), worst {} ({}): a range of {:.3}",
            best.0,
            text::score(best.1),
            worst.0,
            text::score(worst.1),
            best.1 - worst.1
        );
        table.push(["what the rank does", &answer]);
    }
    noted(table, compared)
}

/// Under which conditions the records were made.
pub fn environment(trainer: &Trainer, plan: &Plan, records: &[Record]) -> Table {
    let mut table = setup(trainer, plan);
    let seconds: f64 = records.iter().map(|record| record.train_seconds).sum();
    let peak = records.iter().map(|record| record.peak_memory).max().unwrap_or(0);
    let precision = |precision| records.iter().any(|record| record.run.settings.precision == precision);
    let products = match (precision(Precision::Bf16), precision(Precision::Tf32)) {
        (true, _) => "of bf16 numbers, added up in f32",
        (false, true) => "of f32 numbers, on a GPU as TF32 reads them, added up in f32",
        (false, false) => "f32",
    };
    table.push(["the encoder's products", products]);
    table.push(["training in the comparison", &text::duration(seconds)]);
    table.push(["peak memory of the process", &format!("{} MB", peak / 1_000_000)]);
    if let Some(at_once) = records.iter().filter_map(|record| record.environment.at_once).max() {
        table.note(format!("up to {at_once} runs at once: a run's time and memory are not its own alone"));
    }
    table
}

/// What to say of runs that failed, since means are without them.
fn failures(records: &[Record]) -> Vec<String> {
    let failure = |record: &Record| {
        let what = match (record.stop, record.best_score().is_finite()) {
            (trainer::Stop::Diverged, true) => "diverged; its score is of before",
            (trainer::Stop::Diverged, false) => "diverged without a score, and is in no mean",
            (_, false) => "has no score, and is in no mean",
            _ => return None,
        };
        Some(format!("{} {what}", record.run.name()))
    };
    records.iter().filter_map(failure).collect()
}

fn noted(mut table: Table, records: &[Record]) -> Table {
    failures(records).into_iter().for_each(|failure| table.note(failure));
    caveats(records).into_iter().for_each(|caveat| table.note(caveat));
    table
}

#[cfg(test)]
pub(crate) mod tests {
    use glue::{Completeness, Metric, Scores, Split};

    use super::*;
    use crate::groups::tests::record;

    /// The texts of a column, by its name.
    pub(crate) fn column(table: &Table, name: &str) -> Vec<String> {
        let html = table.to_html();
        let document = roxmltree::Document::parse(&html).unwrap();
        let texts = |node: roxmltree::Node| -> Vec<String> {
            node.children().map(|cell| cell.text().unwrap_or_default().to_string()).collect()
        };
        let mut rows = document.descendants().filter(|node| node.has_tag_name("tr")).map(texts);
        let index = rows.next().unwrap().iter().position(|column| column == name).unwrap();
        rows.map(|row| row[index].clone()).collect()
    }

    #[test]
    fn the_comparison_gives_the_mean_over_seeds_and_whether_it_is_above_the_baseline() {
        let records =
            [(1, 0.89), (2, 0.90), (3, 0.91)].map(|(seed, score)| record(Task::Sst2, Method::lora(8), seed, score));
        let table = comparison(&records);
        assert_eq!(column(&table, "mean ± deviation"), ["0.900 ± 0.010"]);
        assert_eq!((column(&table, "baseline"), column(&table, "above")), (vec!["0.88".into()], vec!["yes".into()]));
        assert!(!table.to_text().contains("different settings"));
        let below = comparison(&[record(Task::Sst2, Method::lora(8), 1, 0.87)]);
        assert_eq!(column(&below, "above"), ["no"]);
    }

    #[test]
    fn a_seed_that_diverged_is_in_no_mean_and_every_table_says_so() {
        let mut records = [1, 2, 3].map(|seed| record(Task::Rte, Method::lora(4), seed, 0.5 + 0.1 * seed as f64));
        records[2].best = None;
        records[2].stop = trainer::Stop::Diverged;
        for table in [runs(&records), comparison(&records), methods(&records), ranks(&records)] {
            let text = table.to_text();
            assert!(text.contains("seed 3 diverged without a score, and is in no mean"), "{text}");
        }
        let metric = comparison(&records);
        assert_eq!(column(&metric, "seeds")[0], "2 of 3, 1 diverged");
        assert!(column(&methods(&records), "mean ± deviation")[0].starts_with("0.650 ± 0.07"));
        // One that is left has no deviation.
        records[1].best = None;
        assert_eq!(column(&comparison(&records), "mean ± deviation")[0], "0.600");
    }

    #[test]
    fn a_mean_over_runs_with_different_settings_says_so() {
        let mut records = [record(Task::Sst2, Method::Full, 1, 0.9), record(Task::Sst2, Method::Full, 2, 0.8)];
        records[1].run.settings.learning_rate = 0.5;
        assert!(comparison(&records).to_text().contains("different settings"));
    }

    #[test]
    fn mnlis_mismatched_split_has_a_row_and_a_baseline_of_its_own() {
        let mut record = record(Task::Mnli, Method::bitfit(), 1, 0.85);
        if let Some(best) = &mut record.best {
            best.other_scores =
                vec![(Split::ValidationMismatched, Scores([(Metric::Accuracy, 0.75)].into_iter().collect()))];
        }
        let table = comparison(&[record]);
        assert_eq!(column(&table, "metric"), ["accuracy", "accuracy, validation (mismatched)"]);
        assert_eq!(column(&table, "mean ± deviation"), ["0.850", "0.750"]);
        assert_eq!(column(&table, "above"), ["yes", "no"]);
    }

    #[test]
    fn what_must_stand_beside_a_score_stands_under_every_table_that_shows_one() {
        let mut partial = record(Task::Mrpc, Method::lora(8), 1, 0.8);
        partial.data.train = Completeness { found: 2500, official: Some(3668), extra: None };
        let records = [partial, record(Task::Synthetic, Method::Full, 1, 0.8)];
        let found = Search { records: records.to_vec(), best: records[0].run.clone() };
        let tables = [
            runs(&records),
            search(&records),
            comparison(&records),
            ranks(&records),
            methods(&records),
            best_settings(&[found]),
        ];
        for table in tables {
            let text = table.to_text();
            assert!(text.contains("MRPC: train 2500 of 3668 (partial)"), "{text}");
            assert!(text.contains("Synthetic: synthetic data"), "{text}");
            assert!(table.to_html().contains("2500 of 3668 (partial)"));
        }
    }

    #[test]
    fn the_findings_say_of_each_task_and_method_whether_its_baseline_is_reached_and_which_is_better() {
        let records = [
            record(Task::Sst2, Method::Full, 1, 0.92),
            record(Task::Sst2, Method::bitfit(), 1, 0.87),
            record(Task::Mrpc, Method::bitfit(), 1, 0.81),
        ];
        let table = findings(&[], &records, &[]);
        assert_eq!(column(&table, "question")[0], "SST-2: is accuracy above the baseline of 0.88?");
        let answers = column(&table, "answer");
        assert_eq!(answers[0], "Full fine-tuning 0.920, yes; BitFit 0.870, no");
        assert_eq!(answers[1], "BitFit 0.810, yes");
        assert_eq!(answers[2], "On SST-2 nothing can be said of Full fine-tuning and BitFit from one seed each");
    }

    #[test]
    fn a_search_lists_the_best_run_of_each_method_first() {
        let scores = [(1, 0.6), (2, 0.9), (3, f64::NAN)];
        let records = scores.map(|(seed, score)| record(Task::Sst2, Method::Full, seed, score));
        assert_eq!(column(&search(&records), "seed"), ["2", "1", "3"]);
    }
}
