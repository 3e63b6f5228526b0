//! Fetching GLUE from where it was published.

use std::fmt;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::task::Task;
use crate::variables::variable;

const GLUE: &str = "https://dl.fbaipublicfiles.com/glue/data";
const SENT_EVAL: &str = "https://dl.fbaipublicfiles.com/senteval/senteval_data";
/// The variable that names another address with the same files, MRPC's among them.
const MIRROR: &str = "GLUE_MIRROR";
/// Bytes of one file that is fetched. The largest of GLUE's has 300 million.
const MOST_PACKED: u64 = 1 << 29;
/// Bytes of all files that an archive holds, unpacked. The largest of GLUE's have 90 million.
const MOST_UNPACKED: u64 = 1 << 29;
/// In the folder of a download that has not come to its end.
const UNFINISHED: &str = ".download";

/// A step of a download, for a caller to show. `Display` is one line.
#[derive(Debug)]
#[non_exhaustive]
pub enum DownloadEvent {
    /// No copy of GLUE was found, and a download into the project's `data/glue` begins.
    Started,
    /// A download came to an end before every task was there, and goes on.
    Continued,
    /// This task is next.
    Task(Task),
    /// A file has arrived. GLUE's are published without a digest to compare with: this is the one to compare by hand, or with another
    /// copy's.
    Arrived {
        /// From where.
        url: String,
        /// How long it is.
        bytes: usize,
        /// Its SHA-256 digest, in hexadecimal digits.
        sha256: String,
    },
    /// What was next is not there.
    Failed(Error),
    /// The end of a download after which these tasks are missing; the next one goes on with them.
    Missing(Vec<Task>),
}

impl fmt::Display for DownloadEvent {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Started => f.write_str("no GLUE in GLUE_DIR or data/glue: downloading it to data/glue"),
            Self::Continued => {
                f.write_str("the download to data/glue had not come to its end: fetching what is missing")
            }
            Self::Task(task) => write!(f, "  {task}"),
            Self::Arrived { url, bytes, sha256 } => write!(f, "    {url}: {bytes} bytes, SHA-256 {sha256}"),
            Self::Failed(error) => error.fmt(f),
            Self::Missing(tasks) => {
                let tasks: Vec<&str> = tasks.iter().map(|task| task.name()).collect();
                write!(f, "missing: {}; `peft-glue data --download` goes on from here", tasks.join(", "))
            }
        }
    }
}

/// Downloads every task into `root` that is not there, and reports which could not be had: a file that is missing keeps no other task
/// from being fetched, an address that does not answer does.
///
/// # Errors
/// When `root` cannot be written.
pub(crate) fn all(root: &Path, mut report: impl FnMut(&DownloadEvent)) -> Result<()> {
    let marker = root.join(UNFINISHED);
    let failed = |source| Error::Write { path: marker.clone(), source };
    files::write(&marker, b"").map_err(failed)?;
    for task in missing(root) {
        report(&DownloadEvent::Task(task));
        if let Err(error) = download(task, root, &mut report) {
            let is_over = matches!(error, Error::Unreachable { .. } | Error::Write { .. });
            report(&DownloadEvent::Failed(error));
            if is_over {
                break;
            }
        }
    }
    let missing = missing(root);
    if missing.is_empty() || missing.len() == Task::ALL.len() {
        std::fs::remove_file(&marker).map_err(failed)?;
    }
    if !missing.is_empty() {
        report(&DownloadEvent::Missing(missing));
    }
    Ok(())
}

fn missing(root: &Path) -> Vec<Task> {
    Task::ALL.into_iter().filter(|task| !root.join(task.name()).is_dir()).collect()
}

/// Whether a download into `root` began and did not come to its end.
pub(crate) fn is_unfinished(root: &Path) -> bool {
    root.join(UNFINISHED).exists() || Task::ALL.iter().any(|&task| partial(root, task).exists())
}

/// The folder of a task's files while they are written.
fn partial(root: &Path, task: Task) -> PathBuf {
    root.join(format!("{}.partial", task.name()))
}

/// Downloads a task into its folder in `root`.
fn download(task: Task, root: &Path, report: &mut dyn FnMut(&DownloadEvent)) -> Result<()> {
    let mut fetch = |url: &str| -> Result<Vec<u8>> {
        let content = fetch(url)?;
        let sha256 = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        report(&DownloadEvent::Arrived { url: url.into(), bytes: content.len(), sha256 });
        Ok(content)
    };
    let files = match task {
        Task::Mrpc => {
            let [train, test] = ["train", "test"].map(|part| address(SENT_EVAL, &format!("msr_paraphrase_{part}.txt")));
            let ids = fetch(&address(GLUE, "mrpc_dev_ids.tsv"))?;
            mrpc(&fetch(&train)?, &fetch(&test)?, &ids)?
        }
        Task::Ax => vec![("diagnostic.tsv".into(), fetch(&address(GLUE, "AX.tsv"))?)],
        _ => {
            let url = address(GLUE, &format!("{}.zip", archive(task)));
            unzip(&url, fetch(&url)?, MOST_UNPACKED)?
        }
    };
    put_into_place(root, task, files)
}

/// Where a file lies, or on the mirror where one is named.
fn address(folder: &str, file: &str) -> String {
    let mirror = variable(MIRROR).map(|mirror| mirror.to_string_lossy().trim_end_matches('/').to_string());
    format!("{}/{file}", mirror.as_deref().unwrap_or(folder))
}

/// The official download script exchanges QQP and STS-B, and names QNLI's first version; these are the right ones.
fn archive(task: Task) -> &'static str {
    match task {
        Task::Qqp => "QQP-clean",
        Task::Qnli => "QNLIv2",
        _ => task.name(),
    }
}

fn fetch(url: &str) -> Result<Vec<u8>> {
    let (address, url) = (url, url.to_string());
    let failed = |reason: String| Error::Download { url: url.clone(), reason };
    let mut response = agent(address).get(address).call().map_err(|error| match error {
        ureq::Error::StatusCode(_) => failed(error.to_string()),
        other => Error::Unreachable { url: url.clone(), reason: other.to_string() },
    })?;
    response.body_mut().with_config().limit(MOST_PACKED).read_to_vec().map_err(|error| failed(error.to_string()))
}

/// What fetches from an address. Nobody is led from an encrypted one to one that is not.
fn agent(address: &str) -> ureq::Agent {
    ureq::Agent::config_builder()
        .https_only(address.starts_with("https://"))
        .timeout_resolve(Some(Duration::from_secs(5)))
        .timeout_connect(Some(Duration::from_secs(5)))
        .timeout_global(Some(Duration::from_secs(1200)))
        .build()
        .into()
}

/// The `.tsv` files of an archive by their own names, whatever folders they lie in; `most` bytes together.
fn unzip(url: &str, bytes: Vec<u8>, most: u64) -> Result<Vec<(String, Vec<u8>)>> {
    let failed = |reason: String| Error::Download { url: url.into(), reason };
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|error| failed(error.to_string()))?;
    let (mut files, mut left) = (Vec::new(), most);
    for index in 0..archive.len() {
        let file = archive.by_index(index).map_err(|error| failed(error.to_string()))?;
        let inner = file.enclosed_name();
        let folder_is_original =
            inner.as_deref().and_then(Path::parent).is_some_and(|parent| parent.iter().any(|part| part == "original"));
        let Some(name) = inner.as_deref().and_then(Path::file_name).and_then(|name| name.to_str()) else { continue };
        if !name.ends_with(".tsv") || folder_is_original || name.starts_with('.') {
            continue;
        }
        let mut content = Vec::new();
        file.take(left + 1).read_to_end(&mut content).map_err(|error| failed(error.to_string()))?;
        left = left
            .checked_sub(content.len() as u64)
            .ok_or_else(|| failed(format!("its archive holds more than {most} bytes, with {name} among them")))?;
        files.push((name.to_string(), content));
    }
    if files.is_empty() {
        return Err(failed("its archive holds no .tsv file".into()));
    }
    Ok(files)
}

/// Writes a task's files beside its folder's place and then renames the folder, so that it is whole or not there.
fn put_into_place(root: &Path, task: Task, files: Vec<(String, Vec<u8>)>) -> Result<()> {
    let folder = root.join(task.name());
    let partial = partial(root, task);
    for (name, content) in files {
        let path = partial.join(name);
        files::write(&path, &content).map_err(|source| Error::Write { path, source })?;
    }
    std::fs::rename(&partial, &folder).map_err(|source| Error::Write { path: folder, source })
}

/// MRPC as GLUE cuts it: its training file parted by the ids of GLUE's validation pairs, and its test file without labels.
fn mrpc(train: &[u8], test: &[u8], validation_ids: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let source = Path::new("msr_paraphrase_train.txt");
    let rows = crate::tsv::rows(source, train)?;
    let ids = crate::tsv::rows(Path::new("mrpc_dev_ids.tsv"), validation_ids)?;
    let mut parts = [String::new(), String::new()];
    for (number, fields) in &rows {
        let line = fields.join("\t") + "\n";
        if *number == 1 {
            parts.iter_mut().for_each(|part| part.push_str(&line));
        } else {
            let validation = ids.iter().any(|(_, id)| id.get(..2) == fields.get(1..3));
            parts[usize::from(validation)].push_str(&line);
        }
    }
    let mut unlabeled = String::from("index\t#1 ID\t#2 ID\t#1 String\t#2 String\n");
    let test = crate::tsv::rows(Path::new("msr_paraphrase_test.txt"), test)?;
    for (index, (_, fields)) in test.iter().skip(1).enumerate() {
        unlabeled += &format!("{index}\t{}\n", fields[1..].join("\t"));
    }
    let [train, validation] = parts;
    Ok([("train.tsv", train), ("dev.tsv", validation), ("test.tsv", unlabeled)]
        .map(|(name, text)| (name.to_string(), text.into_bytes()))
        .into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::{Glue, Split};

    #[test]
    fn mrpc_is_parted_by_the_validation_ids_and_its_test_labels_are_left_out() {
        let header = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n";
        let train = format!("{header}1\t10\t11\ta\tb\r\n0\t12\t13\tc\td\r\n");
        let test = format!("{header}1\t20\t21\te\tf\r\n");
        let folder = tempfile::tempdir().unwrap();
        let files = mrpc(train.as_bytes(), test.as_bytes(), b"12\t13\n").unwrap();
        put_into_place(folder.path(), Task::Mrpc, files).unwrap();
        let glue = Glue::at(folder.path()).unwrap();
        let first = |split| glue.load(Task::Mrpc, split).unwrap().examples().unwrap()[0].first.clone();
        assert_eq!([first(Split::Train), first(Split::Validation), first(Split::Test)], ["a", "c", "e"]);
        let test = std::fs::read_to_string(folder.path().join("MRPC/test.tsv")).unwrap();
        assert_eq!(test.lines().nth(1), Some("0\t20\t21\te\tf"));
    }

    #[test]
    fn an_archive_cannot_write_outside_its_folder_and_its_originals_are_left_out() {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default();
        for name in
            ["RTE/train.tsv", "../evil.tsv", "CoLA/original/raw/train.tsv", "RTE/readme.txt", "X/original/dev.tsv"]
        {
            writer.start_file(name, options).unwrap();
            writer.write_all(name.as_bytes()).unwrap();
        }
        let bytes = writer.finish().unwrap().into_inner();
        let files = unzip("test", bytes, MOST_UNPACKED).unwrap();
        assert_eq!(files.iter().filter(|(name, _)| name == "train.tsv").count(), 1);
        assert!(files.iter().all(|(name, _)| name != "evil.tsv" && name != "dev.tsv"));
    }

    #[test]
    fn a_task_that_was_unpacked_loads() {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default();
        for (name, text) in [
            ("RTE/train.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n"),
            ("__MACOSX/RTE/._train.tsv", "not a table"),
            ("RTE/test.tsv", "index\tsentence1\tsentence2\n0\tc\td\n"),
        ] {
            writer.start_file(name, options).unwrap();
            writer.write_all(text.as_bytes()).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let files = unzip("test", writer.finish().unwrap().into_inner(), MOST_UNPACKED).unwrap();
        put_into_place(folder.path(), Task::Rte, files).unwrap();
        let glue = Glue::at(folder.path()).unwrap();
        assert_eq!(glue.splits(Task::Rte), [Split::Train, Split::Test]);
        assert_eq!(glue.load(Task::Rte, Split::Train).unwrap().len(), 1);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no partial folder is left");
    }

    #[test]
    fn an_archive_that_is_larger_unpacked_than_any_of_glues_is_refused_whatever_it_says() {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        for name in ["RTE/train.tsv", "RTE/dev.tsv"] {
            writer.start_file(name, options).unwrap();
            writer.write_all(&[b'a'; 100_000]).unwrap();
        }
        let bytes = writer.finish().unwrap().into_inner();
        assert!(bytes.len() < 2000);
        assert_eq!(unzip("test", bytes.clone(), 200_000).unwrap().len(), 2);
        let error = unzip("test", bytes, 199_999).unwrap_err().to_string();
        assert!(error.contains("more than 199999 bytes") && error.contains("dev.tsv"), "{error}");
    }

    #[test]
    fn an_encrypted_address_leads_to_none_that_is_not() {
        assert!(agent("https://example.org/RTE.zip").config().https_only());
        // A mirror may be named without encryption.
        assert!(!agent("http://127.0.0.1:8000/RTE.zip").config().https_only());
    }

    #[test]
    fn an_answer_that_is_no_archive_is_an_error_that_names_the_address() {
        let error = unzip("https://example.org/RTE.zip", b"<html>".to_vec(), MOST_UNPACKED).unwrap_err().to_string();
        assert!(error.contains("https://example.org/RTE.zip"), "{error}");
    }

    #[test]
    fn an_address_that_does_not_answer_is_an_error_that_names_it() {
        let error = fetch("http://127.0.0.1:9/glue.zip").unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:9") && error.contains("GLUE_DIR"), "{error}");
    }
}
