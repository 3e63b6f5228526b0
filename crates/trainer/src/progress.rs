//! How far the runs of a folder are, by their records, checkpoints and locks: for who watches from outside.

use std::path::Path;

use glue::Scores;

use crate::checkpoint;
use crate::error::{Error, Result};
use crate::files::RunFolder;
use crate::record::{Evaluation, Record, Stop, best_evaluation};

/// A run as its folder shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// The folder's name: task, method, and what tells the run from others.
    pub folder: String,
    /// Task, method and seed; of a run without a record its folder does not tell.
    pub run: Option<String>,
    /// Whether a process makes it now, or why it ended; none of a run that a killed process left.
    pub state: State,
    /// Steps taken by the last record or checkpoint.
    pub step: usize,
    /// The loss of the last of them.
    pub loss: Option<f64>,
    /// The scores of the best evaluation, and after how many passes over the training set it was.
    pub best: Option<(f64, Scores)>,
}

/// What becomes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A process makes it.
    UnderWay,
    /// It ended, or was stopped, with a record.
    Ended(Stop),
    /// Nobody makes it, and it has no record: asked for again, it goes on.
    Left,
}

/// The runs of a folder, in the order of their names. A file that is not whole counts as none, as another process may be about to replace it.
///
/// # Errors
/// When the folder cannot be listed.
pub fn of_folder(runs: &Path) -> Result<Vec<Progress>> {
    let failed = |source| Error::File { path: runs.into(), source };
    let mut all = Vec::new();
    for entry in std::fs::read_dir(runs).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            all.extend(of_run(name, RunFolder::new(path.clone())));
        }
    }
    all.sort_by(|a, b| a.folder.cmp(&b.folder));
    Ok(all)
}

/// A run's progress; none where the folder is no run's.
fn of_run(name: &str, folder: RunFolder) -> Option<Progress> {
    let record = Record::read(&folder.record()).ok().flatten();
    if record.is_none() && !folder.inputs().is_file() {
        return None;
    }
    let best = |evaluations: &[Evaluation]| best_evaluation(evaluations).map(|best| (best.epoch, best.scores.clone()));
    let is_under_way = folder.is_claimed();
    if let Some(record) = record {
        let state = if is_under_way { State::UnderWay } else { State::Ended(record.stop) };
        return Some(Progress {
            folder: name.into(),
            run: Some(record.run.name()),
            state,
            step: record.losses.last().map_or(0, |loss| loss.step),
            loss: record.losses.last().map(|loss| loss.loss),
            best: best(&record.evaluations),
        });
    }
    let logged = checkpoint::logged(&folder.checkpoint());
    let (losses, evaluations) = logged.map(|state| (state.losses, state.evaluations)).unwrap_or_default();
    Some(Progress {
        folder: name.into(),
        run: None,
        state: if is_under_way { State::UnderWay } else { State::Left },
        step: losses.len(),
        loss: losses.last().map(|loss| loss.loss),
        best: best(&evaluations),
    })
}
