//! What `Glue::locate` does where there is no GLUE. Each case is a process of its own, for its variables and folder.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Cursor, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use glue::{Glue, Origin, Split, Task};

/// The variable that tells a process which case it is.
const CASE: &str = "GLUE_TEST_CASE";

/// Runs a case of `in_a_process_of_its_own` in `folder`, with these variables. The proxy refuses connections: no network.
fn locate_in(folder: &Path, case: &str, variables: &[(&str, &str)]) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "in_a_process_of_its_own"]).current_dir(folder).env(CASE, case);
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
    locate_in(folder.path(), "failed download", &[]);
    assert!(!folder.path().join("data/glue/CoLA").exists(), "a failed download leaves no task folder");
}

#[test]
fn glue_offline_leaves_the_download_out() {
    let folder = tempfile::tempdir().unwrap();
    for yes in ["1", "true", "YES", "on"] {
        locate_in(folder.path(), "offline", &[("GLUE_OFFLINE", yes), ("GLUE_DIR", "")]);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_glue_dir_without_glue_is_an_error_and_not_a_fallback() {
    let folder = tempfile::tempdir().unwrap();
    locate_in(folder.path(), "refused", &[("GLUE_DIR", "not_here")]);
}

#[test]
fn a_glue_dir_goes_before_the_projects_own_data() {
    let folder = tempfile::tempdir().unwrap();
    for (place, task) in [("data/glue", "RTE"), ("elsewhere", "WNLI")] {
        let path = folder.path().join(place).join(task);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("test.tsv"), "index\tsentence1\tsentence2\n0\ta\tb\n").unwrap();
    }
    locate_in(folder.path(), "wnli", &[("GLUE_DIR", "elsewhere")]);
    locate_in(folder.path(), "rte", &[]);
    locate_in(folder.path(), "rte", &[("GLUE_DIR", "")]);
    let home = folder.path().to_str().unwrap();
    locate_in(folder.path(), "wnli", &[("GLUE_DIR", "~/elsewhere"), ("HOME", home)]);
}

/// Answers requests on this machine with these files, and all others with 404. Returns its address.
fn server(files: Vec<(&'static str, Vec<u8>)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/glue/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = String::new();
            let mut lines = BufReader::new(&stream).lines().map_while(|line| line.ok());
            request.extend(lines.next());
            lines.find(|line| line.is_empty());
            let asked = request.split(' ').nth(1).unwrap_or_default();
            let file = files.iter().find(|(name, _)| asked == format!("/glue/{name}"));
            let (status, body) = file.map_or(("404 Not Found", &[][..]), |(_, bytes)| ("200 OK", bytes.as_slice()));
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(&[head.as_bytes(), body].concat());
        }
    });
    address
}

#[test]
fn a_download_passes_over_what_a_mirror_lacks_and_goes_on_the_next_time() {
    let folder = tempfile::tempdir().unwrap();
    let mut rte = zip::ZipWriter::new(Cursor::new(Vec::new()));
    rte.start_file("RTE/test.tsv", zip::write::SimpleFileOptions::default()).unwrap();
    rte.write_all(b"index\tsentence1\tsentence2\n0\ta\tb\n").unwrap();
    let first = server(vec![("RTE.zip", rte.finish().unwrap().into_inner())]);
    let second = server(vec![("AX.tsv", b"index\tsentence1\tsentence2\n0\ta\tb\n".to_vec())]);
    let variables = |mirror| [("GLUE_MIRROR", mirror), ("NO_PROXY", "127.0.0.1"), ("no_proxy", "127.0.0.1")];
    locate_in(folder.path(), "first part", &variables(first.as_str()));
    locate_in(folder.path(), "second part", &variables(second.as_str()));
    // Without the network what is there is of use, and who wants no download gets none.
    locate_in(folder.path(), "both parts", &[("GLUE_OFFLINE", "1")]);
}

/// The cases of the tests above. By itself, without a case, it does nothing.
#[test]
fn in_a_process_of_its_own() {
    let Ok(case) = std::env::var(CASE) else { return };
    let mut events = Vec::new();
    let glue = Glue::locate_with(|event| events.push(event.to_string()));
    match case.as_str() {
        "refused" => {
            let error = glue.unwrap_err().to_string();
            assert!(error.contains("not_here") && error.contains("no folder") && error.contains("GLUE_DIR"), "{error}");
        }
        "failed download" => {
            is_synthetic(&glue.unwrap());
            let [started, task, failed, missing] = events.as_slice() else { panic!("{events:?}") };
            assert!(started.contains("data/glue") && task.contains("CoLA"), "{events:?}");
            assert!(missing.contains("CoLA") && missing.contains("AX"), "{missing}");
            assert!(failed.contains("CoLA.zip") && failed.contains("GLUE_DIR"), "{failed}");
        }
        "offline" => {
            is_synthetic(&glue.unwrap());
            assert!(events.is_empty(), "{events:?}");
        }
        "first part" => {
            assert!(events.iter().any(|event| event.contains("/glue/CoLA.zip") && event.contains("404")), "{events:?}");
            assert_eq!(glue.unwrap().tasks(), [Task::Rte]);
        }
        "second part" => {
            assert!(events[0].contains("had not come to its end"), "{events:?}");
            assert!(events.iter().all(|event| event.trim() != "RTE"), "what is there is not fetched again: {events:?}");
            let glue = glue.unwrap();
            assert_eq!(glue.tasks(), [Task::Rte, Task::Ax]);
            let error = glue.load(Task::Mrpc, Split::Train).unwrap_err().to_string();
            assert!(error.contains("MRPC/train.tsv") && error.contains("data --download"), "{error}");
        }
        "both parts" => {
            assert!(events.is_empty(), "{events:?}");
            assert_eq!(glue.unwrap().tasks(), [Task::Rte, Task::Ax]);
        }
        "wnli" => is(&glue.unwrap(), Origin::Variable, Task::Wnli),
        "rte" => is(&glue.unwrap(), Origin::Project, Task::Rte),
        case => panic!("no case {case}"),
    }
}

fn is_synthetic(glue: &Glue) {
    assert!(matches!(glue.origin(), Origin::Synthetic(_)), "{}", glue.origin());
    assert_eq!(glue.tasks(), [Task::Synthetic]);
    assert_eq!(glue.load(Task::Synthetic, Split::Validation).unwrap().len(), 200);
}

fn is(glue: &Glue, origin: Origin, task: Task) {
    assert_eq!((glue.origin(), glue.tasks()), (&origin, vec![task]));
}
