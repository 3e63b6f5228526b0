//! The published records of the repository, which are of before records had a version.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::Path;

use trainer::Record;
use trainer::results::{self, Condition};
use trainer::study::Study;

#[test]
fn every_published_record_reads_and_is_the_same_after_it_was_migrated() {
    let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../results");
    let folder = tempfile::tempdir().unwrap();
    let mut files = results::files(&published).unwrap();
    files.retain(|file| file.extension().is_some_and(|end| end == "json"));
    assert!(files.len() >= 68, "{}", files.len());
    for file in &files {
        std::fs::copy(file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    let records = results::load(&published).unwrap();
    assert_eq!(records.len(), files.len());
    for file in results::files(folder.path()).unwrap() {
        let is_old = results::check(&file).unwrap() == Condition::Old;
        assert_eq!(results::migrate(&file).unwrap(), is_old);
        assert_eq!(results::check(&file).unwrap(), Condition::Whole);
    }
    assert_eq!(results::load(folder.path()).unwrap(), records);
}

#[test]
fn the_records_of_a_study_lie_in_one_file_of_which_every_line_is_checked() {
    let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../results");
    let mut records = results::load(&published).unwrap();
    records.truncate(3);
    let folder = tempfile::tempdir().unwrap();
    let file = results::publish_study(folder.path(), "rates", &records).unwrap();
    assert_eq!(results::files(folder.path()).unwrap(), std::slice::from_ref(&file));
    assert_eq!(results::check(&file).unwrap(), Condition::Whole);
    let read = results::study(folder.path(), "rates").unwrap();
    let names = |records: &[Record]| records.iter().map(|record| record.run.key()).collect::<Vec<_>>();
    assert_eq!(names(&read), names(&records));
    assert!(read.iter().zip(&records).all(|(read, record)| read.best == record.best && read.losses.len() <= 25));

    let text = std::fs::read_to_string(&file).unwrap();
    let seed = format!("\"seed\":{}", records[1].run.seed);
    let lines: Vec<String> = text.lines().map(String::from).collect();
    let edited = [&lines[0], &lines[1].replace(&seed, "\"seed\":77"), &lines[2]].map(String::as_str).join("\n");
    std::fs::write(&file, edited).unwrap();
    let Condition::Damaged(reason) = results::check(&file).unwrap() else { panic!("not damaged") };
    assert!(reason.contains("line 2") && reason.contains("rates.jsonl"), "{reason}");
    assert!(results::study(folder.path(), "rates").is_err());
    assert!(results::study(folder.path(), "another").unwrap().is_empty());
}

#[test]
fn every_study_of_the_repository_can_be_made_and_one_that_is_published_is_whole() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut published = 0;
    for entry in std::fs::read_dir(root.join("studies")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        let study = Study::load(&path).unwrap();
        let records = results::study(&root.join("results"), &name).unwrap();
        let stage = study.stage(|run| Ok(records.iter().find(|record| record.run == *run).cloned())).unwrap();
        assert!(stage.candidates.len() > 1, "{name}");
        assert!(records.is_empty() || stage.missing.is_empty(), "{name}: {stage}");
        published += records.len();
    }
    let files = results::files(&root.join("results")).unwrap();
    let studies = files.iter().filter(|file| file.extension().is_some_and(|end| end == "jsonl"));
    let lines = |file: &Path| std::fs::read_to_string(file).unwrap().lines().count();
    // That of the report has no file: its runs are those of the notebook.
    let studies = studies.filter(|file| !file.ends_with("report.jsonl"));
    assert_eq!(published, studies.map(|file| lines(file)).sum::<usize>(), "a published study has no file in studies/");
}

#[test]
fn the_records_of_a_folder_are_those_of_its_runs_and_not_what_lies_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["digests.json", "speeds.json", "published.json", "a/record.json", "a/inputs.json", "b/weights.json"] {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    let files = results::files(folder.path()).unwrap();
    assert_eq!(files, ["published.json", "a/record.json"].map(|file| folder.path().join(file)));
    let files = results::files(&folder.path().join("a")).unwrap();
    assert_eq!(files, [folder.path().join("a/record.json")]);
}
