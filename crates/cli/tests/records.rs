//! Records on the command line, and how a run that diverged ends; with a tiny model.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::Path;
use std::process::{Command, Output};

fn peft_glue(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_peft-glue")).args(arguments).output().unwrap()
}

fn printed(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A checkpoint of two layers with a vocabulary of letters.
fn put_model(folder: &Path) {
    let oracle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peft/tests/oracle/tiny-bert");
    std::fs::create_dir_all(folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(oracle.join(file), folder.join(file)).unwrap();
    }
    let letters = ('a'..='z').flat_map(|letter| [letter.to_string(), format!("##{letter}")]);
    let tokens: Vec<String> =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].map(String::from).into_iter().chain(letters).collect();
    std::fs::write(folder.join("vocab.txt"), tokens.join("\n")).unwrap();
}

/// A folder with a model and its runs, and a command that makes one of four steps there.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        put_model(&folder.path().join("model"));
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().into()
    }

    fn run(&self, more: &[&str]) -> Output {
        self.command("run", more)
    }

    fn command(&self, name: &str, more: &[&str]) -> Output {
        let (model, runs) = (self.path("model"), self.path("runs"));
        let short =
            ["--max-length", "40", "--train-limit", "16", "--batch-size", "8", "--epochs", "2", "--device", "cpu"];
        let run = [name, "--task", "synthetic", "--method", "lora", "--model", &model, "--runs", &runs];
        peft_glue(&[&run[..], &short, more].concat())
    }
}

/// What makes a run diverge after its first step.
const DIVERGES: [&str; 6] = ["--lr", "1e30", "--warmup", "0", "--max-grad-norm", "0"];

#[test]
fn a_run_that_diverged_is_told_by_the_exit_status_each_time_and_has_no_adapter() {
    let place = Place::new();
    let adapter = place.path("adapter");
    for eval_steps in ["1", "100"] {
        for _ in 0..2 {
            let output = place.run(&[&DIVERGES[..], &["--eval-steps", eval_steps, "--json"]].concat());
            assert_eq!(output.status.code(), Some(4), "{}", said(&output));
            assert!(said(&output).contains("diverged: the loss is not finite"), "{}", said(&output));
            let record: trainer::Record = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!((record.stop, record.best), (trainer::Stop::Diverged, None));
        }
        let output = place.run(&[&DIVERGES[..], &["--eval-steps", eval_steps, "--save-adapter", &adapter]].concat());
        assert_eq!(output.status.code(), Some(4), "{}", said(&output));
        assert!(
            said(&output).contains("diverged at") && !said(&output).contains("--keep-weights"),
            "{}",
            said(&output)
        );
        assert!(!Path::new(&adapter).exists());
    }
    let folder = place.path("predictions");
    let output = place.command("predict", &[&DIVERGES[..], &["--eval-steps", "1", "--folder", &folder]].concat());
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(!Path::new(&folder).exists(), "nothing is predicted");
    let help = peft_glue(&["--help"]);
    assert!(printed(&help).contains("4 a run that diverged"));
}

#[test]
fn records_are_listed_as_whole_old_or_damaged_and_old_ones_are_migrated() {
    let place = Place::new();
    let output = place.run(&["--json"]);
    assert!(output.status.success(), "{}", said(&output));
    let folder = place.0.path().join("records");
    std::fs::create_dir(&folder).unwrap();
    let whole = printed(&output);
    let start = whole.find("\"run\"").unwrap();
    let old = format!("{{{}", &whole[start..]);
    std::fs::write(folder.join("whole.json"), &whole).unwrap();
    std::fs::write(folder.join("old.json"), &old).unwrap();
    std::fs::write(folder.join("edited.json"), whole.replace("\"finished\"", "\"diverged\"")).unwrap();
    std::fs::write(folder.join("later.json"), whole.replace("\"format\":2", "\"format\":3")).unwrap();

    let records = folder.to_str().unwrap();
    let checked = peft_glue(&["records", "check", records]);
    let lines: Vec<String> = printed(&checked).lines().map(String::from).collect();
    let expected = [("damaged", "edited"), ("damaged", "later"), ("old", "old"), ("whole", "whole")]
        .map(|(condition, name)| format!("{condition:8} {}", folder.join(name).with_extension("json").display()));
    assert_eq!(lines[..4], expected);
    assert_eq!(lines[4], "4 records: 1 whole, 1 old, 2 damaged");
    assert!(lines[5].contains("peft-glue records migrate"));
    assert_eq!(checked.status.code(), Some(1));
    assert!(
        said(&checked).contains("edited or damaged") && said(&checked).contains("later version"),
        "{}",
        said(&checked)
    );

    let migrated = peft_glue(&["records", "migrate", records]);
    assert_eq!(migrated.status.code(), Some(1), "two are damaged");
    assert!(printed(&migrated).contains("old.json\n1 records are now"), "{}", printed(&migrated));
    assert_eq!(std::fs::read_to_string(folder.join("old.json")).unwrap(), whole);

    // A run's folder, the folder of all runs, and a file.
    let runs = place.path("runs");
    let run = std::fs::read_dir(&runs).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    for place in [runs.as_str(), run.to_str().unwrap(), run.join("record.json").to_str().unwrap()] {
        let checked = peft_glue(&["records", "check", place]);
        assert!(checked.status.success() && printed(&checked).contains("1 records: 1 whole"), "{}", printed(&checked));
    }
    for nothing in [place.path("nowhere"), place.path("model")] {
        let output = peft_glue(&["records", "check", &nothing]);
        assert!(!output.status.success() && said(&output).contains(&nothing), "{}", said(&output));
    }
}
