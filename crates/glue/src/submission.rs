//! The files that GLUE's server takes.

use std::path::{Path, PathBuf};

use crate::dataset::has_label_names;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::metrics::Targets;
use crate::task::{Split, Task};

/// Writes predictions for a test split as GLUE's `{task}.tsv` into `folder`: a header, then index and prediction, from 0. MNLI,
/// QNLI, RTE and AX are written as class names; STS-B's scores are clamped to 0 to 5 and have three decimals.
///
/// # Errors
/// When there are not `rows` predictions, a score is not a number, a class is none of the task's, or the file cannot be written.
pub fn write(folder: &Path, task: Task, split: Split, predictions: &Targets, rows: usize) -> Result<PathBuf> {
    let wrong = |expected: String, found: String| {
        Err(Error::Predictions { what: format!("predictions for {task}, {split}"), expected, found })
    };
    if predictions.len() != rows {
        return wrong(format!("{rows} rows"), format!("{} rows", predictions.len()));
    }
    let mut text = String::from("index\tprediction\n");
    match predictions {
        Targets::Values(scores) if task.is_regression() => {
            for (index, score) in scores.iter().enumerate() {
                if score.is_nan() {
                    return wrong("numbers".into(), format!("NaN in row {index}"));
                }
                text += &format!("{index}\t{:.3}\n", score.clamp(0.0, 5.0));
            }
        }
        Targets::Classes(classes) if !task.is_regression() => {
            for (index, &class) in classes.iter().enumerate() {
                match task.labels().get(class) {
                    Some(name) if has_label_names(task) => text += &format!("{index}\t{name}\n"),
                    Some(_) => text += &format!("{index}\t{class}\n"),
                    None => return wrong(format!("classes below {}", task.num_labels()), format!("class {class}")),
                }
            }
        }
        _ => return wrong(if task.is_regression() { "scores" } else { "classes" }.into(), "the other kind".into()),
    }
    let path = folder.join(file_name(task, split));
    write_atomically(&path, text.as_bytes()).map_err(|source| Error::Write { path: path.clone(), source })?;
    Ok(path)
}

fn file_name(task: Task, split: Split) -> String {
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
        let path = write(folder.path(), task, split, &predictions, predictions.len()).unwrap();
        (path.file_name().unwrap().to_string_lossy().into(), std::fs::read_to_string(path).unwrap())
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
            write(folder.path(), Task::Rte, Split::Test, &Targets::Classes(vec![0]), 2).unwrap_err().to_string();
        assert!(error.contains("expected 2 rows, found 1 rows"), "{error}");
        assert!(write(folder.path(), Task::Rte, Split::Test, &Targets::Classes(vec![2]), 1).is_err());
        assert!(write(folder.path(), Task::StsB, Split::Test, &Targets::Values(vec![f64::NAN]), 1).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
