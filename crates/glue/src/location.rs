//! Where the data is.

use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use crate::dataset::Dataset;
use crate::download::{self, DownloadEvent};
use crate::error::{Error, Result};
use crate::synthetic;
use crate::task::{Split, Task};
use crate::variables::{is_on, variable, with_home};

/// A copy of GLUE, or, where there is none, the synthetic task alone.
#[derive(Clone, Debug)]
pub struct Glue {
    root: Option<PathBuf>,
    origin: Origin,
}

/// Which copy it is. `Display` says so without a machine's own paths.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The folder that the variable `GLUE_DIR` names.
    Variable,
    /// `data/glue` of the project.
    Project,
    /// A folder named by the caller.
    Folder,
    /// Downloaded into `data/glue` just now.
    Downloaded,
    /// No GLUE was found, and none could be downloaded, for this reason.
    Synthetic(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Variable => f.write_str("the folder GLUE_DIR names"),
            Self::Project => f.write_str("data/glue"),
            Self::Folder => f.write_str("the folder given"),
            Self::Downloaded => f.write_str("downloaded to data/glue"),
            Self::Synthetic(reason) => write!(f, "synthetic, made by this project ({reason})"),
        }
    }
}

impl Glue {
    /// Finds GLUE: the folder that `GLUE_DIR` names, then the project's `data/glue`, then a download into `data/glue` (not with
    /// `GLUE_OFFLINE=1`), which goes on where one had not come to its end. Where all fail there is the synthetic task. A download takes
    /// minutes and says nothing: [`Glue::locate_with`] tells of it.
    ///
    /// # Errors
    /// When `GLUE_DIR` is set and there is no GLUE.
    pub fn locate() -> Result<Self> {
        Self::locate_with(|_| ())
    }

    /// [`Glue::locate`], which reports each step of a download, its failure among them.
    ///
    /// ```no_run
    /// # fn main() -> glue::Result<()> {
    /// let glue = glue::Glue::locate_with(|event| eprintln!("{event}"))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When `GLUE_DIR` is set and there is no GLUE.
    pub fn locate_with(mut report: impl FnMut(&DownloadEvent)) -> Result<Self> {
        let found = Self::find()?;
        let is_whole = |glue: &Self| glue.origin != Origin::Project || !download::is_unfinished(&own_folder());
        match found {
            Some(glue) if is_whole(&glue) => Ok(glue),
            found if is_on("GLUE_OFFLINE") => {
                Ok(found.unwrap_or_else(|| Self::synthetic("no GLUE found, and GLUE_OFFLINE is set")))
            }
            found => {
                report(if found.is_some() { &DownloadEvent::Continued } else { &DownloadEvent::Started });
                Ok(Self::download(report))
            }
        }
    }

    /// Downloads into the project's `data/glue` every task that is not there, and reports each step. Where no task is there in the end,
    /// there is the synthetic one.
    pub fn download(mut report: impl FnMut(&DownloadEvent)) -> Self {
        if let Err(error) = download::all(&own_folder(), &mut report) {
            report(&DownloadEvent::Failed(error));
        }
        // Tasks that arrived before a failure are of use.
        Self::in_folder(own_folder(), Origin::Downloaded)
            .unwrap_or_else(|| Self::synthetic("no GLUE found, and none could be downloaded"))
    }

    /// The first copy of GLUE on this machine, in `locate`'s order; none where only a download is left. Never opens a
    /// connection.
    ///
    /// # Errors
    /// When `GLUE_DIR` is set and there is no GLUE.
    pub fn find() -> Result<Option<Self>> {
        if let Some(folder) = variable("GLUE_DIR") {
            return Ok(Some(Self { origin: Origin::Variable, ..Self::at(with_home(folder))? }));
        }
        Ok(Self::in_folder(own_folder(), Origin::Project))
    }

    /// A folder with at least one file of a task.
    fn in_folder(root: PathBuf, origin: Origin) -> Option<Self> {
        let glue = Self { root: Some(root), origin };
        (!glue.tasks().is_empty()).then_some(glue)
    }

    /// The copy of GLUE in a folder.
    ///
    /// # Errors
    /// When the folder has none of its tasks.
    pub fn at(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let found = if root.is_dir() { "a folder without them" } else { "no folder" };
        Self::in_folder(root.clone(), Origin::Folder).ok_or_else(|| Error::NoGlue { path: root, found: found.into() })
    }

    /// No GLUE, for this reason: the synthetic task alone.
    pub fn synthetic(reason: &str) -> Self {
        Self { root: None, origin: Origin::Synthetic(reason.into()) }
    }

    /// Which copy it is.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The tasks there is at least one file of; the synthetic one if there is nothing else.
    pub fn tasks(&self) -> Vec<Task> {
        match self.root {
            Some(_) => Task::ALL.into_iter().filter(|&task| !self.splits(task).is_empty()).collect(),
            None => vec![Task::Synthetic],
        }
    }

    /// The splits of a task that are here.
    pub fn splits(&self, task: Task) -> Vec<Split> {
        let here =
            |&split: &Split| task == Task::Synthetic || self.path(task, split).is_some_and(|path| path.is_file());
        task.splits().into_iter().filter(here).collect()
    }

    /// Fails if a split is not here, without reading it.
    ///
    /// # Errors
    /// When the task has no such split or its file is missing; the message names the file.
    pub fn require(&self, task: Task, split: Split) -> Result<()> {
        if task == Task::Synthetic && task.splits().contains(&split) {
            return Ok(());
        }
        let (path, expected) = self.expected(task, split)?;
        let or = self.or_download();
        open(&path, expected, or).map(drop)
    }

    /// Fails if the further rows of [`Glue::load_with_extra`] are not here, without reading them.
    ///
    /// # Errors
    /// When the training set or `train_extra.tsv` beside it is missing.
    pub fn require_extra(&self, task: Task) -> Result<()> {
        self.require(task, Split::Train)?;
        self.open_extra(task).map(drop)
    }

    /// The file of further rows, and where it lies.
    fn open_extra(&self, task: Task) -> Result<(PathBuf, BufReader<File>)> {
        let path = self.expected(task, Split::Train)?.0.with_file_name("train_extra.tsv");
        let expected =
            format!("labeled rows for {task} that are not GLUE's; to do without them, train on train.tsv alone");
        let file = open(&path, expected, "")?;
        Ok((path, file))
    }

    /// The files that a task is trained on and measured by, as far as they are here: with `extra` those of
    /// [`Glue::load_with_extra`]. The synthetic task has none.
    pub fn training_files(&self, task: Task, extra: bool) -> Vec<PathBuf> {
        if task == Task::Synthetic {
            return Vec::new();
        }
        let splits = [Split::Train].into_iter().chain(task.validation_splits().iter().copied());
        let mut files: Vec<PathBuf> = splits.filter_map(|split| self.path(task, split)).collect();
        let more = files.first().filter(|_| extra).map(|train| train.with_file_name("train_extra.tsv"));
        files.extend(more);
        files.retain(|file| file.is_file());
        files
    }

    /// The file of a split, and what it should hold.
    fn expected(&self, task: Task, split: Split) -> Result<(PathBuf, String)> {
        let no_split = |place: &str, choices: Vec<Split>| Error::NoSplit {
            task: task.name(),
            split: split.to_string(),
            place: place.into(),
            choices: listed(&choices),
        };
        if !task.splits().contains(&split) {
            return Err(no_split("in GLUE", task.splits()));
        }
        let path = self
            .path(task, split)
            .ok_or_else(|| no_split("without GLUE's data: set GLUE_DIR, or use the task synthetic", Vec::new()))?;
        Ok((path, format!("the {split} split of {task}; here are: {}", listed(&self.splits(task)))))
    }

    /// Loads a split.
    ///
    /// # Errors
    /// When the task has no such split or it is not here, or its file is broken; the message names file and line.
    pub fn load(&self, task: Task, split: Split) -> Result<Dataset> {
        if task == Task::Synthetic && task.splits().contains(&split) {
            return Dataset::read(task, split, Path::new("synthetic"), synthetic::text(split).as_bytes());
        }
        let (path, expected) = self.expected(task, split)?;
        let file = open(&path, expected, self.or_download())?;
        Dataset::read(task, split, &path, file)
    }

    /// Loads the training set with the rows of `train_extra.tsv`, which lies beside `train.tsv` and has its columns, after
    /// its own. That is no file of GLUE: the set counts as partial, and its `completeness` says how many rows are not GLUE's.
    ///
    /// # Errors
    /// When one of the two files is missing or broken; the message names file and line.
    pub fn load_with_extra(&self, task: Task) -> Result<Dataset> {
        let mut train = self.load(task, Split::Train)?;
        let (path, file) = self.open_extra(task)?;
        train.append_extra(Dataset::read(task, Split::Train, &path, file)?)?;
        Ok(train)
    }

    /// What can be done about a file that is missing, besides naming another folder.
    fn or_download(&self) -> &'static str {
        match self.origin {
            Origin::Project | Origin::Downloaded => ", or fetch what is missing: peft-glue data --download",
            _ => "",
        }
    }

    fn path(&self, task: Task, split: Split) -> Option<PathBuf> {
        let root = self.root.as_ref()?;
        if task == Task::Ax {
            let places = ["AX/diagnostic.tsv", "AX/AX.tsv", "AX.tsv", "diagnostic/diagnostic.tsv"];
            let mut places = places.into_iter().map(|place| root.join(place));
            return places.find(|place| place.is_file()).or_else(|| Some(root.join("AX/diagnostic.tsv")));
        }
        let file = match (task, split) {
            (_, Split::Train) => "train.tsv",
            (Task::Mnli, Split::Validation) => "dev_matched.tsv",
            (Task::Mnli, Split::Test) => "test_matched.tsv",
            (_, Split::Validation) => "dev.tsv",
            (_, Split::Test) => "test.tsv",
            (_, Split::ValidationMismatched) => "dev_mismatched.tsv",
            (_, Split::TestMismatched) => "test_mismatched.tsv",
        };
        Some(root.join(task.name()).join(file))
    }
}

/// Opens a data file; `or` is what else can be done about one that is missing.
fn open(path: &Path, expected: String, or: &'static str) -> Result<BufReader<File>> {
    let missing = |source| Error::Missing { path: path.into(), expected, or, source };
    Ok(BufReader::with_capacity(1 << 20, File::open(path).map_err(missing)?))
}

/// Where the project's own copy of GLUE lies.
fn own_folder() -> PathBuf {
    project_root().join("data/glue")
}

fn listed(splits: &[Split]) -> String {
    if splits.is_empty() {
        return "none".into();
    }
    splits.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The nearest folder above the present one that holds both `Cargo.toml` and `crates/`, else the present one.
pub fn project_root() -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    let is_root = |folder: &&Path| folder.join("Cargo.toml").is_file() && folder.join("crates").is_dir();
    here.ancestors().find(is_root).map(Path::to_path_buf).unwrap_or(here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_glue_is_an_error_that_says_what_was_expected() {
        let error = Glue::at("/no/such/folder").unwrap_err().to_string();
        assert!(
            error.contains("/no/such/folder") && error.contains("no folder") && error.contains("GLUE_DIR"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_file_is_an_error_that_names_it_and_what_is_here() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("QQP")).unwrap();
        std::fs::write(folder.path().join("QQP/dev.tsv"), "").unwrap();
        let error = Glue::at(folder.path()).unwrap().load(Task::Qqp, Split::Test).unwrap_err().to_string();
        assert!(error.contains("QQP/test.tsv") && error.contains("here are: validation"), "{error}");
    }

    #[test]
    fn extra_rows_follow_those_of_the_training_file() {
        let folder = tempfile::tempdir().unwrap();
        let qqp = folder.path().join("QQP");
        std::fs::create_dir(&qqp).unwrap();
        let header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n";
        std::fs::write(qqp.join("train.tsv"), format!("{header}0\t1\t2\ta\tb\t1\n")).unwrap();
        let glue = Glue::at(folder.path()).unwrap();
        let error = glue.load_with_extra(Task::Qqp).unwrap_err().to_string();
        assert!(error.contains("QQP/train_extra.tsv") && error.contains("train on train.tsv alone"), "{error}");
        // The second extra row lacks a question, as some of QQP's do.
        let extra = format!("{header}7\t1\t2\tc\td\t0\n8\t1\t2\te\t\t0\n9\t1\t2\tg\th\t1\n");
        std::fs::write(qqp.join("train_extra.tsv"), extra).unwrap();
        let data = glue.load_with_extra(Task::Qqp).unwrap();
        let first: Vec<String> = data.examples().unwrap().into_iter().map(|example| example.first).collect();
        assert_eq!(first, ["a", "c", "g"]);
        assert_eq!(data.targets().unwrap(), Some(crate::Targets::Classes(vec![1, 0, 1])));
        assert_eq!((data.dropped, data.completeness.found, data.completeness.extra), (1, 1, Some(2)));
        assert_eq!(glue.load(Task::Qqp, Split::Train).unwrap().completeness.extra, None);
    }

    #[test]
    fn a_folder_whose_task_folders_are_empty_is_not_glue() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("RTE")).unwrap();
        let error = Glue::at(folder.path()).unwrap_err().to_string();
        assert!(error.contains("a folder without them"), "{error}");
    }

    #[test]
    fn ax_is_found_under_each_of_its_official_names() {
        for place in ["AX/diagnostic.tsv", "AX/AX.tsv", "AX.tsv", "diagnostic/diagnostic.tsv"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(place);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "index\tsentence1\tsentence2\n0\ta\tb\n").unwrap();
            let glue = Glue::at(folder.path()).unwrap();
            assert_eq!(glue.tasks(), [Task::Ax], "{place}");
            assert_eq!(glue.load(Task::Ax, Split::Test).unwrap().len(), 1);
        }
    }

    #[test]
    fn a_split_that_the_task_has_not_is_an_error() {
        let error = Glue::synthetic("test").load(Task::Synthetic, Split::TestMismatched).unwrap_err().to_string();
        assert!(error.contains("Synthetic has no test (mismatched) split"), "{error}");
    }
}
