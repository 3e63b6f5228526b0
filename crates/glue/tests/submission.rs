//! The zip for GLUE's server, read again, and what is refused before it is written.
#![allow(clippy::unwrap_used)]

use std::io::{Cursor, Read};
use std::path::Path;

use glue::submission::{check, file_name, majority, splits, write, write_zip};
use glue::{Glue, Split, Targets, Task};

/// The files that the server asks for, and the rows of GLUE's test files, as its documentation lists them.
const FILES: [(&str, usize); 11] = [
    ("CoLA.tsv", 1063),
    ("SST-2.tsv", 1821),
    ("MRPC.tsv", 1725),
    ("STS-B.tsv", 1379),
    ("QQP.tsv", 390_965),
    ("MNLI-m.tsv", 9796),
    ("MNLI-mm.tsv", 9847),
    ("QNLI.tsv", 5463),
    ("RTE.tsv", 3000),
    ("WNLI.tsv", 146),
    ("AX.tsv", 1104),
];

/// Writes predictions of all kinds for every test split.
fn write_all(folder: &Path) {
    for (task, split) in splits() {
        let rows = task.official_rows(split).unwrap();
        let predictions = if task.is_regression() {
            Targets::Values((0..rows).map(|row| row as f64 * 5.0 / rows as f64).collect())
        } else {
            Targets::Classes((0..rows).map(|row| row % task.num_labels()).collect())
        };
        write(folder, task, split, &predictions, 0..rows as i64).unwrap();
    }
}

#[test]
fn the_zip_read_again_holds_the_servers_files_as_they_were_written_and_their_rows() {
    let folder = tempfile::tempdir().unwrap();
    write_all(folder.path());
    // The second time the first zip lies in the folder.
    let path = folder.path().join("submission.zip");
    write_zip(folder.path(), &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    write_zip(folder.path(), &path).unwrap();
    assert!(bytes == std::fs::read(&path).unwrap(), "the same files give the same bytes");

    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
    assert_eq!(archive.len(), FILES.len());
    for (index, (name, rows)) in FILES.into_iter().enumerate() {
        let mut file = archive.by_index(index).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((file.name().unwrap().as_ref(), text.lines().count()), (name, rows + 1));
        assert!(text == std::fs::read_to_string(folder.path().join(name)).unwrap(), "{name}");
    }
}

#[test]
fn a_missing_file_and_an_additional_one_are_refused_by_name_and_leave_no_zip() {
    let folder = tempfile::tempdir().unwrap();
    write_all(folder.path());
    std::fs::remove_file(folder.path().join("QQP.tsv")).unwrap();
    std::fs::write(folder.path().join("MNLI.tsv"), "").unwrap();
    let path = folder.path().join("submission.zip");
    let error = write_zip(folder.path(), &path).unwrap_err().to_string();
    assert!(error.contains("found a folder without QQP.tsv, also with MNLI.tsv;"), "{error}");
    assert!(!path.exists());
    let error = write_zip(&folder.path().join("none"), &path).unwrap_err().to_string();
    assert!(error.contains("none") && error.contains("CoLA.tsv, SST-2.tsv"), "{error}");
}

#[test]
fn predictions_for_a_part_of_a_test_file_are_refused_in_the_zip() {
    let folder = tempfile::tempdir().unwrap();
    write_all(folder.path());
    write(folder.path(), Task::Rte, Split::Test, &Targets::Classes(vec![0; 1000]), 0..1000).unwrap();
    let error = write_zip(folder.path(), &folder.path().join("submission.zip")).unwrap_err().to_string();
    for part in ["RTE.tsv, line 1002:", "expected 3000 rows", "a part of it cannot be handed in", "found 1000 rows"] {
        assert!(error.contains(part), "{error}");
    }
}

/// Each case is a file that is right but for one line.
#[test]
fn each_wrong_line_is_an_error_that_names_file_line_what_was_expected_and_what_was_found() {
    let cases: [(&str, usize, &[u8], [&str; 2]); 12] = [
        ("RTE.tsv", 1, b"id\tprediction", ["the header \"index\\tprediction\"", "\"id\\tprediction\""]),
        ("RTE.tsv", 5, b"4\tentailment", ["the index 3", "\"4\\tentailment\""]),
        ("RTE.tsv", 5, b"3", ["one of entailment, not_entailment", "\"\""]),
        ("RTE.tsv", 5, b"3\t1", ["one of entailment, not_entailment", "\"1\""]),
        ("RTE.tsv", 5, b"3\tentailment\r", ["one of entailment, not_entailment", "\"entailment\\r\""]),
        ("RTE.tsv", 3001, b"2999\tentailment\n3000\tentailment", ["3000 rows", "3001 rows"]),
        ("AX.tsv", 2, b"0\tnot_entailment", ["one of entailment, neutral, contradiction", "\"not_entailment\""]),
        ("CoLA.tsv", 2, b"0\tacceptable", ["one of 0, 1", "\"acceptable\""]),
        ("WNLI.tsv", 147, b"145\t\xff", ["one of 0, 1", "\"\u{fffd}\""]),
        ("QQP.tsv", 3, b"1\t1.0", ["one of 0, 1", "\"1.0\""]),
        ("STS-B.tsv", 2, b"0\t5.001", ["a score from 0 to 5", "\"5.001\""]),
        ("STS-B.tsv", 2, b"0\tNaN", ["a score from 0 to 5", "\"NaN\""]),
    ];
    let folder = tempfile::tempdir().unwrap();
    write_all(folder.path());
    for (name, line, text, parts) in cases {
        let path = folder.path().join(name);
        let whole = std::fs::read(&path).unwrap();
        check(&path).unwrap();
        let mut lines: Vec<&[u8]> = whole.split(|&byte| byte == b'\n').collect();
        lines[line - 1] = text;
        std::fs::write(&path, lines.join(&b'\n')).unwrap();
        let error = check(&path).unwrap_err().to_string();
        let line = if text.contains(&b'\n') { line + 1 } else { line };
        assert!(error.contains(&format!("{name}, line {line}: ")), "{error}");
        assert!(parts.iter().all(|part| error.contains(part)) && error.contains("write it again"), "{error}");
        std::fs::write(&path, whole).unwrap();
    }
    let unknown = folder.path().join("MNLI.tsv");
    std::fs::copy(folder.path().join("MNLI-m.tsv"), &unknown).unwrap();
    let error = check(&unknown).unwrap_err().to_string();
    assert!(error.contains("MNLI-m.tsv, MNLI-mm.tsv") && error.contains("a file named \"MNLI.tsv\""), "{error}");
}

#[test]
fn the_majority_class_fills_in_for_test_files_that_are_absent_or_partial() {
    let root = tempfile::tempdir().unwrap();
    for (file, text) in [
        ("QQP/train.tsv", "question1\tquestion2\tis_duplicate\na\tb\t0\nc\td\t1\ne\tf\t1\n"),
        ("QQP/test.tsv", "question1\tquestion2\na\tb\n"),
        (
            "MNLI/train.tsv",
            "sentence1\tsentence2\tgold_label\na\tb\tneutral\nc\td\tcontradiction\ne\tf\tcontradiction\n",
        ),
        ("STS-B/train.tsv", "sentence1\tsentence2\tscore\na\tb\t1\nc\td\t4\n"),
    ] {
        let path = root.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let glue = Glue::at(root.path()).unwrap();
    let of = |task, split| majority(&glue, task, split).unwrap();
    assert_eq!(of(Task::Qqp, Split::Test), Targets::Classes(vec![1; 390_965]));
    assert_eq!(of(Task::Mnli, Split::TestMismatched), Targets::Classes(vec![2; 9847]));
    assert_eq!(of(Task::Ax, Split::Test), Targets::Classes(vec![2; 1104]));
    assert_eq!(of(Task::StsB, Split::Test), Targets::Values(vec![2.5; 1379]));
    let error = majority(&glue, Task::Rte, Split::Test).unwrap_err().to_string();
    assert!(error.contains("RTE/train.tsv"), "{error}");
    assert!(majority(&glue, Task::Qqp, Split::TestMismatched).is_err());

    for (task, split) in [(Task::Mnli, Split::Test), (Task::Ax, Split::Test)] {
        let predictions = of(task, split);
        let path = write(root.path(), task, split, &predictions, 0..predictions.len() as i64).unwrap();
        assert_eq!(path.file_name().unwrap().to_str(), Some(file_name(task, split).as_str()));
        check(&path).unwrap();
    }
}

#[test]
fn scores_that_are_not_finite_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    for score in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let scores = Targets::Values(vec![1.0, score]);
        let error = write(folder.path(), Task::StsB, Split::Test, &scores, 0..2).unwrap_err().to_string();
        assert!(error.contains("expected finite numbers") && error.contains("row 1"), "{error}");
    }
    assert!(!folder.path().join("STS-B.tsv").exists());
}
