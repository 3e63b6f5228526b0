//! The files that GLUE's server takes, one for each test split, and the zip of them.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::dataset::{has_label_names, label_texts};
use crate::error::{Error, Result};
use crate::location::Glue;
use crate::metrics::Targets;
use crate::task::{Split, Task};

const HEADER: &str = "index\tprediction";

/// What a submission predicts: the test splits of GLUE's ten tasks, eleven as MNLI has two, in the order of `Task::ALL`.
pub fn splits() -> impl Iterator<Item = (Task, Split)> {
    Task::ALL.into_iter().flat_map(|task| task.test_splits().iter().map(move |&split| (task, split)))
}

/// Writes predictions for a test split as GLUE's `{task}.tsv` into `folder`: a header, then the index of each row and its prediction, in
/// the order of the indices. MNLI, QNLI, RTE and AX are written as class names; STS-B's scores are clamped to 0 to 5 and have three
/// decimals.
///
/// # Errors
/// When there are not as many predictions as indices, a score is not a finite number, a class is none of the task's, or the file cannot be written.
pub fn write(
    folder: &Path,
    task: Task,
    split: Split,
    predictions: &Targets,
    index: impl IntoIterator<Item = i64>,
) -> Result<PathBuf> {
    let index: Vec<i64> = index.into_iter().collect();
    let wrong = |expected: String, found: String| {
        Err(Error::Predictions { what: format!("predictions for {task}, {split}"), expected, found })
    };
    if predictions.len() != index.len() {
        return wrong(format!("{} rows", index.len()), format!("{} rows", predictions.len()));
    }
    let mut lines = Vec::new();
    match predictions {
        Targets::Values(scores) if task.is_regression() => {
            for (index, score) in index.into_iter().zip(scores) {
                if !score.is_finite() {
                    return wrong("finite numbers".into(), format!("{score} in row {index}"));
                }
                lines.push((index, format!("{index}\t{:.3}\n", score.clamp(0.0, 5.0))));
            }
        }
        Targets::Classes(classes) if !task.is_regression() => {
            for (index, &class) in index.into_iter().zip(classes) {
                match task.labels().get(class) {
                    Some(name) if has_label_names(task) => lines.push((index, format!("{index}\t{name}\n"))),
                    Some(_) => lines.push((index, format!("{index}\t{class}\n"))),
                    None => return wrong(format!("classes below {}", task.num_labels()), format!("class {class}")),
                }
            }
        }
        _ => return wrong(if task.is_regression() { "scores" } else { "classes" }.into(), "the other kind".into()),
    }
    lines.sort();
    let lines: String = lines.into_iter().map(|(_, line)| line).collect();
    let (path, text) = (folder.join(file_name(task, split)), format!("{HEADER}\n{lines}"));
    files::write(&path, text.as_bytes()).map_err(|source| Error::Write { path: path.clone(), source })?;
    Ok(path)
}

/// What to hand in where nothing was learned or the test file is absent: for each row of a split the most frequent class of the
/// task's training set, or its mean score. The number of rows is the official one, whatever is here of the split. AX, which
/// has no training set, gets MNLI's class.
///
/// # Errors
/// When the training set is missing or broken, or the task has no such split.
pub fn majority(glue: &Glue, task: Task, split: Split) -> Result<Targets> {
    let rows = match task.official_rows(split) {
        Some(rows) => rows,
        None => glue.load(task, split)?.len(),
    };
    let train = glue.load(if task == Task::Ax { Task::Mnli } else { task }, Split::Train)?;
    let labels = train.targets()?.ok_or_else(|| Error::NoLabels {
        task: train.task.name(),
        split: train.split.to_string(),
        expected: "labels",
        found: "none",
    })?;
    Ok(labels.majority(rows))
}

/// Checks a submission file: that its name is one of the eleven, and that it has the header, the index from 0, a label
/// that the server takes for the task (as [`write()`] writes them; for STS-B a number from 0 to 5), and as many rows as GLUE's test
/// file, not as the part of it that may be here.
///
/// # Errors
/// When one of these is not so or the file cannot be read; the message names file and line.
pub fn check(path: &Path) -> Result<()> {
    read_checked(path).map(drop)
}

/// Writes the zip that GLUE's server takes to `path`: the eleven files of a folder, each checked as by [`check`], without a folder
/// around them. The same files give the same bytes. `path` may lie in the folder.
///
/// # Errors
/// When a file is missing or not as it must be, when there is something else in the folder, or when the zip cannot be written.
pub fn write_zip(folder: &Path, path: &Path) -> Result<()> {
    let names = names();
    let here = entries(folder, path).map_err(|source| not_a_submission(folder, source.to_string()))?;
    let missing: Vec<&str> = names.iter().filter(|name| !here.contains(name)).map(String::as_str).collect();
    let additional: Vec<&str> = here.iter().filter(|name| !names.contains(name)).map(String::as_str).collect();
    let parts = [("without", missing), ("also with", additional)].into_iter().filter(|(_, names)| !names.is_empty());
    let found: Vec<String> = parts.map(|(what, names)| format!("{what} {}", names.join(", "))).collect();
    if !found.is_empty() {
        return Err(not_a_submission(folder, format!("a folder {}", found.join(", "))));
    }
    let mut files = Vec::new();
    for name in names {
        let content = read_checked(&folder.join(&name))?;
        files.push((name, content));
    }
    archive(files)
        .map_err(std::io::Error::from)
        .and_then(|bytes| files::write(path, &bytes))
        .map_err(|source| Error::Write { path: path.into(), source })
}

/// The names of a submission's files, in the order of the zip.
fn names() -> Vec<String> {
    splits().map(|(task, split)| file_name(task, split)).collect()
}

/// The names in a folder in order, without that of the zip.
fn entries(folder: &Path, zip: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path() != zip {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn archive(files: Vec<(String, Vec<u8>)>) -> zip::result::ZipResult<Vec<u8>> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    // A fixed time and fixed rights, so that the bytes depend on the files' content alone.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644);
    for (name, content) in files {
        archive.start_file(name, options)?;
        archive.write_all(&content)?;
    }
    Ok(archive.finish()?.into_inner())
}

fn not_a_submission(path: &Path, found: String) -> Error {
    let expected = format!("a submission's files: {}", names().join(", "));
    Error::SubmissionFiles { path: path.into(), expected, found }
}

/// A file's bytes, if the server would take them.
fn read_checked(path: &Path) -> Result<Vec<u8>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some((task, split)) = splits().find(|&(task, split)| file_name(task, split) == name) else {
        return Err(not_a_submission(path, format!("a file named {name:?}")));
    };
    let bytes = std::fs::read(path).map_err(|source| not_a_submission(path, source.to_string()))?;
    // Bytes that are no UTF-8 turn into a character that no index or label has.
    let text = String::from_utf8_lossy(&bytes);
    let wrong = |line: usize, expected: String, found: String| {
        Err(Error::SubmissionLine { path: path.into(), line, expected, found })
    };
    let mut lines = text.strip_suffix('\n').unwrap_or(&text).split('\n');
    let header = lines.next().unwrap_or_default();
    if header != HEADER {
        return wrong(1, format!("the header {HEADER:?}"), excerpt(header));
    }
    let labels = label_texts(task);
    let taken = |text: &str| match task.is_regression() {
        true => text.parse().is_ok_and(|score: f64| (0.0..=5.0).contains(&score)),
        false => labels.iter().any(|label| label == text),
    };
    let mut rows = 0;
    for line in lines {
        let (index, prediction) = line.split_once('\t').unwrap_or((line, ""));
        if index != rows.to_string() {
            return wrong(rows + 2, format!("the index {rows}"), excerpt(line));
        }
        if !taken(prediction) {
            let expected = if task.is_regression() {
                "a score from 0 to 5".into()
            } else {
                format!("one of {}", labels.join(", "))
            };
            return wrong(rows + 2, expected, excerpt(prediction));
        }
        rows += 1;
    }
    if let Some(official) = task.official_rows(split).filter(|&official| official != rows) {
        let expected =
            format!("{official} rows, those of GLUE's whole {split} file (a part of it cannot be handed in)");
        return wrong(rows.min(official) + 2, expected, format!("{rows} rows"));
    }
    Ok(bytes)
}

/// The beginning of a text, for a message.
fn excerpt(text: &str) -> String {
    format!("{:?}", text.chars().take(60).collect::<String>())
}

/// The name of a split's file in a submission.
pub fn file_name(task: Task, split: Split) -> String {
    match (task, split) {
        (Task::Mnli, Split::TestMismatched | Split::ValidationMismatched) => "MNLI-mm.tsv".into(),
        (Task::Mnli, _) => "MNLI-m.tsv".into(),
        _ => format!("{}.tsv", task.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(task: Task, split: Split, predictions: Targets) -> (String, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), task, split, &predictions, 0..predictions.len() as i64).unwrap();
        (path.file_name().unwrap().to_string_lossy().into(), std::fs::read_to_string(path).unwrap())
    }

    #[test]
    fn a_part_of_a_test_set_is_written_under_its_own_indices_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), Task::Rte, Split::Test, &Targets::Classes(vec![0, 1, 0]), [40, 7, 8]).unwrap();
        let expected = "index\tprediction\n7\tnot_entailment\n8\tentailment\n40\tentailment\n";
        assert_eq!(std::fs::read_to_string(path).unwrap(), expected);
    }

    #[test]
    fn each_task_is_written_as_the_server_takes_it() {
        let classes = |ids: &[usize]| Targets::Classes(ids.to_vec());
        let file = written(Task::Rte, Split::Test, classes(&[1, 0]));
        assert_eq!(file, ("RTE.tsv".into(), "index\tprediction\n0\tnot_entailment\n1\tentailment\n".into()));
        let file = written(Task::Mnli, Split::TestMismatched, classes(&[2]));
        assert_eq!(file, ("MNLI-mm.tsv".into(), "index\tprediction\n0\tcontradiction\n".into()));
        assert_eq!(written(Task::Sst2, Split::Test, classes(&[1])).1, "index\tprediction\n0\t1\n");
        let scores = written(Task::StsB, Split::Test, Targets::Values(vec![5.3, -0.1, 2.0 / 3.0]));
        assert_eq!(scores, ("STS-B.tsv".into(), "index\tprediction\n0\t5.000\n1\t0.000\n2\t0.667\n".into()));
    }

    #[test]
    fn too_few_rows_or_a_class_that_is_none_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error =
            write(folder.path(), Task::Rte, Split::Test, &Targets::Classes(vec![0]), 0..2).unwrap_err().to_string();
        assert!(error.contains("expected 2 rows, found 1 rows"), "{error}");
        assert!(write(folder.path(), Task::Rte, Split::Test, &Targets::Classes(vec![2]), 0..1).is_err());
        assert!(write(folder.path(), Task::StsB, Split::Test, &Targets::Values(vec![f64::NAN]), 0..1).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
