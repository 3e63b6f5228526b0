//! A whole submission by tiny runs, on a GLUE of a few rows and of whole test sets for WNLI and AX alone.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use std::io::{Cursor, Read};
use std::path::Path;

use glue::submission::{file_name, majority, splits};
use glue::{Glue, Split, Task};
use peft::Method;
use trainer::{Run, StartsFrom, Trainer, submission};

/// So many rows of pairs below a header, whose last column is the label where there are labels.
fn rows(header: &str, count: usize, labels: &[&str]) -> String {
    let index = if header.starts_with("index") { "0\t" } else { "" };
    let label = |row: usize| labels.get(row % labels.len().max(1)).map(|label| format!("\t{label}"));
    let row = |row: usize| {
        format!("{index}the {}cat\ta dog sleeps{}\n", "old ".repeat(row % 9), label(row).unwrap_or_default())
    };
    format!("{header}\n{}", (0..count).map(row).collect::<String>())
}

fn put(folder: &Path, file: &str, text: &str) {
    let path = folder.join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn glue(folder: &Path) -> Glue {
    let (ids, two) = (["0", "1", "1"], ["entailment", "not_entailment", "not_entailment"]);
    put(folder, "CoLA/train.tsv", "a\t1\t\tthe cat sleeps\n");
    put(folder, "SST-2/train.tsv", "sentence\tlabel\nthe cat\t0\n");
    put(folder, "STS-B/train.tsv", &rows("sentence1\tsentence2\tscore", 2, &["1.0", "4.0"]));
    for (task, header, labels) in [
        ("MRPC", "#1 String\t#2 String\tQuality", &ids),
        ("QQP", "question1\tquestion2\tis_duplicate", &ids),
        ("QNLI", "question\tsentence\tlabel", &two),
        ("RTE", "sentence1\tsentence2\tlabel", &two),
    ] {
        put(folder, &format!("{task}/train.tsv"), &rows(header, 3, labels));
    }
    for file in ["train.tsv", "dev.tsv"] {
        put(folder, &format!("WNLI/{file}"), &rows("index\tsentence1\tsentence2\tlabel", 12, &ids));
    }
    let mnli =
        rows("index\tsentence1\tsentence2\tgold_label", 12, &["neutral", "entailment", "contradiction", "entailment"]);
    for file in ["train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"] {
        put(folder, &format!("MNLI/{file}"), &mnli);
    }
    put(folder, "WNLI/test.tsv", &rows("index\tsentence1\tsentence2", 146, &[]));
    put(folder, "AX/diagnostic.tsv", &rows("index\tsentence1\tsentence2", 1104, &[]));
    Glue::at(folder).unwrap()
}

fn run(task: Task, model: &Path, method: Method) -> Run {
    Run::new(task, &model.to_string_lossy(), method).with(|settings| {
        settings.max_length = 40;
        settings.epochs = 1;
        settings.batch_size = 4;
        settings.learning_rate = 1e-2;
    })
}

fn trainer(glue: &Glue, runs: &Path) -> Trainer {
    Trainer::new(glue.clone(), runs).keep_weights(true)
}

/// The names and texts of a zip's files.
fn unzipped(path: &Path) -> Vec<(String, String)> {
    let mut archive = zip::ZipArchive::new(Cursor::new(std::fs::read(path).unwrap())).unwrap();
    let read = |index| {
        let mut file = archive.by_index(index).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        (file.name().unwrap().into_owned(), text)
    };
    (0..11).map(read).collect()
}

#[test]
fn a_submission_of_records_alone_makes_the_runs_again_and_its_files_are_their_predictions_or_majorities() {
    let [data, there, here] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let (glue, model) = (glue(data.path()), support::model());
    let mnli = run(Task::Mnli, model.path(), Method::lora(2));
    let wnli = run(Task::Wnli, model.path(), Method::lora(2)).starting_from(StartsFrom::Run(Box::new(mnli.clone())));
    let records = trainer(&glue, there.path()).run_all(&[mnli.clone(), wnli.clone()]).unwrap();

    let mut trainer = trainer(&glue, here.path());
    let files = submission::files(&glue, &records, Some("lora"));
    assert_eq!(submission::missing(&trainer, &files).unwrap(), [&mnli, &wnli]);
    let path = here.path().join("submission.zip");
    submission::write(&mut trainer, &files, &path).unwrap();
    assert!(submission::missing(&trainer, &files).unwrap().is_empty());

    let zipped = unzipped(&path);
    for ((task, split), (name, text)) in splits().zip(&zipped) {
        assert_eq!(*name, file_name(task, split));
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("index\tprediction"), "{name}");
        assert_eq!(Some(lines.count()), task.official_rows(split), "{name}");
    }
    for (task, run) in [(Task::Wnli, &wnli), (Task::Ax, &mnli)] {
        let predictions = trainer.predict(run, task, Split::Test).unwrap();
        let expected =
            glue::submission::write(here.path(), task, Split::Test, &predictions, 0..predictions.len() as i64);
        let expected = (file_name(task, Split::Test), std::fs::read_to_string(expected.unwrap()).unwrap());
        assert_ne!(predictions, majority(&glue, task, Split::Test).unwrap(), "{task}: a majority would pass");
        assert!(zipped.contains(&expected), "{task}");
    }
    for (name, end) in
        [("MRPC.tsv", "1724\t1\n"), ("STS-B.tsv", "1378\t2.500\n"), ("MNLI-mm.tsv", "9846\tentailment\n")]
    {
        let (_, text) = zipped.iter().find(|(other, _)| other == name).unwrap();
        assert!(text.ends_with(end), "{name}");
    }

    put(data.path(), "WNLI/test.tsv", &rows("index\tsentence1\tsentence2", 10, &[]));
    let error = submission::write(&mut trainer, &files, &path).unwrap_err().to_string();
    assert!(error.contains("WNLI.tsv") && error.contains("expected 146 rows") && error.contains("10 rows"), "{error}");
    assert!(unzipped(&path) == zipped, "the zip there was stays");
}

#[test]
fn weights_of_a_run_that_has_not_come_to_its_end_here_do_not_predict() {
    let [data, there, here] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let (glue, model) = (glue(data.path()), support::model());
    let wnli = run(Task::Wnli, model.path(), Method::lora(2));
    let records = vec![trainer(&glue, there.path()).run(&wnli).unwrap()];
    let files = submission::files(&glue, &records, None);

    let mut stopped = trainer(&glue, here.path()).published(records.clone());
    std::fs::write(here.path().join("stop"), "").unwrap();
    let path = here.path().join("submission.zip");
    let error = submission::write(&mut stopped, &files, &path).unwrap_err().to_string();
    assert!(error.contains("WNLI") && error.contains("stop file found"), "{error}");
    assert!(stopped.folder(&wnli).join("weights.safetensors").exists() && !path.exists());
    assert_eq!(submission::missing(&stopped, &files).unwrap(), [&wnli]);

    std::fs::remove_file(here.path().join("stop")).unwrap();
    submission::write(&mut stopped, &files, &path).unwrap();
    let predicted = |runs: &Path| trainer(&glue, runs).predict(&wnli, Task::Wnli, Split::Test).unwrap();
    assert_eq!(predicted(here.path()), predicted(there.path()), "it went on to the end");
}

#[test]
fn a_run_made_again_for_its_weights_has_no_record_until_it_ends() {
    let [data, runs] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (glue, model) = (glue(data.path()), support::model());
    let full = run(Task::Wnli, model.path(), Method::Full);
    let mut trainer = trainer(&glue, runs.path()).keep_weights(false);
    trainer.run(&full).unwrap();
    assert!(trainer.record(&full).unwrap().is_some() && !trainer.has_weights(&full).unwrap());

    // It fails after its beginning, as if it were killed then.
    std::fs::write(trainer.folder(&full).join("checkpoint.safetensors"), "broken").unwrap();
    let mut trainer = trainer.keep_weights(true);
    trainer.run(&full).unwrap_err();
    assert!(trainer.record(&full).unwrap().is_none());
}
