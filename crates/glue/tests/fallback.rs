//! What `Glue::locate` does where there is no GLUE. Each case is a process of its own, for its variables and folder.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use glue::{Glue, Origin, Split, Task};

/// Runs the test of that name below in `folder`, with these variables. The proxy refuses connections: no network.
fn locate_in(folder: &Path, test: &str, variables: &[(&str, &str)]) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--ignored"]).current_dir(folder);
    for name in ["GLUE_DIR", "GLUE_OFFLINE", "NO_PROXY", "no_proxy"] {
        child.env_remove(name);
    }
    child.env("ALL_PROXY", "http://127.0.0.1:9").envs(variables.iter().copied());
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn with_neither_glue_nor_network_there_is_the_synthetic_task() {
    let folder = tempfile::tempdir().unwrap();
    locate_in(folder.path(), "the_synthetic_task_is_located", &[]);
    assert!(!folder.path().join("data/glue/CoLA").exists(), "a failed download leaves no task folder");
}

#[test]
fn glue_offline_leaves_the_download_out() {
    let folder = tempfile::tempdir().unwrap();
    locate_in(folder.path(), "the_synthetic_task_is_located", &[("GLUE_OFFLINE", "1")]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_glue_dir_without_glue_is_an_error_and_not_a_fallback() {
    let folder = tempfile::tempdir().unwrap();
    locate_in(folder.path(), "glue_dir_is_refused", &[("GLUE_DIR", "not_here")]);
}

#[test]
fn a_glue_dir_goes_before_the_projects_own_data() {
    let folder = tempfile::tempdir().unwrap();
    for (place, task) in [("data/glue", "RTE"), ("elsewhere", "WNLI")] {
        let path = folder.path().join(place).join(task);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("test.tsv"), "index\tsentence1\tsentence2\n0\ta\tb\n").unwrap();
    }
    locate_in(folder.path(), "wnli_is_located", &[("GLUE_DIR", "elsewhere")]);
    locate_in(folder.path(), "rte_is_located", &[]);
}

#[test]
#[ignore = "run by the tests above"]
fn the_synthetic_task_is_located() {
    let glue = Glue::locate().unwrap();
    assert!(matches!(glue.origin(), Origin::Synthetic(_)), "{}", glue.origin());
    assert_eq!(glue.tasks(), [Task::Synthetic]);
    assert_eq!(glue.load(Task::Synthetic, Split::Validation).unwrap().len(), 200);
}

#[test]
#[ignore = "run by the tests above"]
fn glue_dir_is_refused() {
    let error = Glue::locate().unwrap_err().to_string();
    assert!(error.contains("not_here") && error.contains("no folder") && error.contains("GLUE_DIR"), "{error}");
}

#[test]
#[ignore = "run by the tests above"]
fn wnli_is_located() {
    let glue = Glue::locate().unwrap();
    assert_eq!((glue.origin(), glue.tasks()), (&Origin::Variable, vec![Task::Wnli]));
}

#[test]
#[ignore = "run by the tests above"]
fn rte_is_located() {
    let glue = Glue::locate().unwrap();
    assert_eq!((glue.origin(), glue.tasks()), (&Origin::Project, vec![Task::Rte]));
}
