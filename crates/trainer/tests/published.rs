//! The published records of the repository, which are of before records had a version.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::Path;

use trainer::results::{self, Condition};

#[test]
fn every_published_record_reads_and_is_the_same_after_it_was_migrated() {
    let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../results");
    let folder = tempfile::tempdir().unwrap();
    let files = results::files(&published).unwrap();
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
