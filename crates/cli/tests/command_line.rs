//! The real program, as someone at a terminal meets it.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use trainer::DEFAULT_MODEL;

fn peft_glue(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_peft-glue")).args(arguments).envs(variables.iter().copied()).output().unwrap()
}

/// What a failing call prints to the standard error.
fn complaint(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let output = peft_glue(arguments, variables);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(output.stdout.is_empty() || !arguments.contains(&"--json"));
    String::from_utf8(output.stderr).unwrap()
}

const RUN: [&str; 5] = ["run", "--task", "synthetic", "--method", "bitfit"];

#[test]
fn an_unknown_task_is_answered_with_the_tasks_there_are() {
    let error = complaint(&["run", "--task", "imdb", "--method", "lora"], &[]);
    assert!(error.contains("unknown task \"imdb\"") && error.contains("mrpc"), "{error}");
}

#[test]
fn a_glue_dir_without_glue_is_an_error_and_not_another_copy() {
    let error = complaint(&["data"], &[("GLUE_DIR", "/no/such/folder")]);
    assert!(error.contains("/no/such/folder") && error.contains("correct GLUE_DIR"), "{error}");
}

#[test]
fn a_model_that_is_nowhere_is_an_error_that_says_what_to_do() {
    let error = complaint(&[&RUN[..], &["--model", "./nowhere"]].concat(), &[]);
    assert!(error.contains("./nowhere") && error.contains("config.json"), "{error}");
}

#[test]
fn every_model_that_a_file_has_asked_of_the_hub_is_told_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let write = |name: &str, model: &str, start: &str| {
        let text = format!(
            "about = ''\ntask = 'synthetic'\nmodel = '{model}'\nseeds = [1]\n{start}\n[method]\nname = 'bitfit'\n[settings]\n"
        );
        std::fs::write(path(name), text).unwrap();
    };
    write("first.toml", "someone/first", "");
    write("second.toml", "someone/second", &format!("starts_from = {:?}", path("first.toml")));
    std::fs::write(path("study.toml"), format!("recipes = [{:?}]\n", path("second.toml"))).unwrap();
    // Nobody listens there.
    let variables = [("HF_ENDPOINT", "http://127.0.0.1:1"), ("HF_HOME", &path("cache")), ("GLUE_DIR", "")];
    let (second, first, study) = (path("second.toml"), path("first.toml"), path("study.toml"));
    for (arguments, file, models) in [
        (vec!["run", "--recipe", &second], &second, ["someone/first", "someone/second"].as_slice()),
        ([&RUN[..], &["--starts-from", &first]].concat(), &first, &["someone/first"]),
        (vec!["study", "run", &study, "--runs", &path("runs")], &study, &["someone/first", "someone/second"]),
    ] {
        let error = complaint(&arguments, &variables);
        for model in models {
            assert!(error.contains(&format!("Note: {file} names the model {model}, which")), "{arguments:?}: {error}");
        }
    }
}

#[test]
fn a_complaint_names_the_option_as_it_was_typed() {
    for (option, value, name) in [
        ("--lr", "0", "lr is 0"),
        ("--learning-rate", "0", "lr is 0"),
        ("--warmup", "100", "warmup is 100"),
        ("--eval-steps", "0", "eval-steps is every 0 steps"),
        ("--train-limit", "0", "train-limit is 0"),
        ("--loraplus-lr-ratio", "16", "loraplus-lr-ratio is 16 with BitFit"),
    ] {
        let error = complaint(&[&RUN[..], &[option, value]].concat(), &[]);
        assert!(error.contains(name) && error.contains("give another --"), "{error}");
    }
    let lora = ["run", "--task", "synthetic", "--method", "lora", "--rank-pattern", "query=0"];
    let error = complaint(&lora, &[]);
    assert!(error.contains("query=0") && !error.contains("Some"), "{error}");
}

#[test]
fn what_needs_no_data_looks_for_none_and_json_is_all_that_is_printed() {
    // A folder that is no GLUE would be an error where data is looked for.
    let nowhere = [("GLUE_DIR", "/no/such/folder")];
    let output = peft_glue(&["parameters", "--task", "rte", "--method", "bitfit", "--model", TINY], &nowhere);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty() || String::from_utf8_lossy(&output.stderr).starts_with("Note: "));
    let error = complaint(&["run", "--task", "rte", "--method", "bitfit", "--model", TINY, "--json"], &nowhere);
    assert!(error.contains("/no/such/folder"), "{error}");
}

#[test]
fn a_broken_file_keeps_no_other_from_being_listed() {
    let folder = tempfile::tempdir().unwrap();
    tiny_glue(folder.path());
    std::fs::write(folder.path().join("CoLA/train.tsv"), "broken").unwrap();
    let output = peft_glue(&["data"], &[("GLUE_DIR", folder.path().to_str().unwrap())]);
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1));
    assert!(printed.contains("broken") && printed.contains("WNLI") && printed.contains("146"), "{printed}");
    assert!(said.contains("CoLA/train.tsv") && said.contains("line 1"), "{said}");
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_command_without_a_word() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_peft-glue"));
    child.args(["parameters", "--task", "rte", "--method", "full", "--model", TINY]);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let said = child.wait_with_output().unwrap().stderr;
    let said = String::from_utf8_lossy(&said);
    assert!(!said.contains("panicked") && !said.contains("Broken pipe"), "{said}");
}

#[test]
fn nothing_is_written_over_what_it_is_made_of_by_any_spelling_or_link() {
    let folder = tempfile::tempdir().unwrap();
    let (adapter, link) = (folder.path().join("adapter"), folder.path().join("link"));
    std::fs::create_dir(&adapter).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(Path::new(DORA).join(file), adapter.join(file)).unwrap();
    }
    std::os::unix::fs::symlink(&adapter, &link).unwrap();
    let before = std::fs::read(adapter.join("adapter_model.safetensors")).unwrap();
    let (adapter_name, link) = (adapter.to_str().unwrap(), link.to_str().unwrap());
    for command in ["merge", "convert"] {
        let rank: &[&str] = if command == "convert" { &["--rank", "2"] } else { &[] };
        let asked = ["adapter", command, adapter_name, "--model", TINY, "--output", link];
        let error = complaint(&[&asked[..], rank].concat(), &[]);
        assert!(error.contains("--output") && error.contains("is read from"), "{error}");
    }
    assert!(std::fs::read(adapter.join("adapter_model.safetensors")).unwrap() == before);
    let error = complaint(&["adapter", "merge", adapter_name, "--model", TINY, "--output", &format!("{TINY}/.")], &[]);
    assert!(error.contains("--output") && error.contains("is read from"), "{error}");
}

#[test]
#[ignore = "needs models/: make test"]
fn a_run_that_is_not_finished_is_told_by_the_exit_status_and_what_cannot_be_written_before_it_begins() {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs");
    let short = ["--train-limit", "16", "--batch-size", "8", "--json", "--runs", runs.to_str().unwrap()];
    let output = peft_glue(&[&RUN[..], &short, &["--time-budget", "0"]].concat(), &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("is not finished: time budget spent"), "{said}");
    serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    assert_eq!(peft_glue(&[&RUN[..], &short].concat(), &[]).status.code(), Some(0));
    let unwritable = runs.join("digests.json/adapter");
    let error =
        complaint(&[&RUN[..], &short, &["--seed", "2", "--save-adapter", unwritable.to_str().unwrap()]].concat(), &[]);
    assert!(error.contains("digests.json/adapter") && !error.contains("epoch"), "{error}");
}

#[test]
fn a_complaint_tells_its_cause_once() {
    let error =
        complaint(&[&RUN[..], &["--model", TINY, "--max-length", "40", "--runs", "/dev/null/runs"]].concat(), &[]);
    assert!(error.contains("/dev/null/runs") && error.matches("(os error").count() == 1, "{error}");
    let adapter = adapter_naming(TINY);
    std::fs::write(adapter.path().join("adapter_config.json"), "{").unwrap();
    let asked = ["predict", "--task", "mnli", "--model", TINY, "--adapter", adapter.path().to_str().unwrap()];
    let error = complaint(&asked, &[]);
    assert!(error.matches("EOF while parsing").count() == 1, "{error}");
}

#[test]
fn impossible_numbers_are_refused_by_name() {
    let error = complaint(&[&RUN[..], &["--seed", "minus one"]].concat(), &[]);
    assert!(error.contains("--seed"), "{error}");
}

#[test]
#[ignore = "needs models/: make test"]
fn several_runs_are_those_of_all_ranks_and_seeds_and_each_prints_its_record() {
    let error = complaint(&[&RUN[..], &["--seeds", "1,2", "--at-once", "0"]].concat(), &[]);
    assert!(error.contains("--at-once"), "{error}");
    let error = complaint(&[&RUN[..], &["--seeds", "1,2", "--seed", "3"]].concat(), &[]);
    assert!(error.contains("cannot be used with"), "{error}");
    let error = complaint(&[&RUN[..], &["--ranks", "1,2"]].concat(), &[]);
    assert!(error.contains("--method lora"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let lora = ["run", "--task", "synthetic", "--method", "lora", "--train-limit", "8", "--epochs", "1", "--json"];
    let several = ["--ranks", "1,2", "--seeds", "5,6", "--at-once", "2", "--runs", folder.path().to_str().unwrap()];
    let text = printed(&[&lora[..], &several].concat());
    let records: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |record: &serde_json::Value| (record["run"]["method"]["r"].as_u64(), record["run"]["seed"].as_u64());
    assert_eq!(
        records.iter().map(of).collect::<Vec<_>>(),
        [(1, 5), (1, 6), (2, 5), (2, 6)].map(|(r, seed)| (Some(r), Some(seed)))
    );
    assert!(records.iter().all(|record| record["environment"]["at_once"] == 2), "{text}");
}

#[test]
fn an_option_of_another_method_is_refused_with_the_methods_that_have_it() {
    let error = complaint(&[&RUN[..], &["--r", "4"]].concat(), &[]);
    assert!(error.contains("--r is no option of --method bitfit, but of lora, vera"), "{error}");
    let full = ["run", "--task", "rte", "--method", "full", "--num-virtual-tokens", "4"];
    let error = complaint(&full, &[]);
    assert!(error.contains("prefix_tuning, prompt_tuning, p_tuning"), "{error}");
    let lora = |options: &[&str]| complaint(&[&["run", "--task", "rte", "--method", "lora"], options].concat(), &[]);
    let error = lora(&["--r", "four"]);
    assert!(error.contains("r \"four\"") && error.contains("expected usize"), "{error}");
    assert!(lora(&["--eva-rho", "3"]).contains("init_lora_weights eva"));
    assert!(lora(&["--target-modules", "query", "--target-pattern", ".*key"]).contains("leave one out"));
    assert!(lora(&["--rank-pattern", "query"]).contains("expected NAME=VALUE"));
}

#[test]
fn every_option_of_a_method_stands_in_the_help_under_the_methods_that_have_it() {
    let help = printed(&["run", "--help"]);
    for heading in ["Options of lora:", "Options of adalora:", "Options of lora, adalora", "Options of bottleneck:"] {
        assert!(help.contains(heading), "{heading} is not in {help}");
    }
    for option in ["--use-dora", "--projection-prng-key", "--adapter-style", "--prompt-tuning-init-text"] {
        assert_eq!(
            help.matches(&format!("{option} ")).count() + help.matches(&format!("{option}\n")).count(),
            1,
            "{option}"
        );
    }
}

#[test]
fn a_printed_configuration_is_read_again_and_changed_by_options() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    let print = |arguments: &[&str]| printed(&[&["run", "--print-config"], arguments].concat());
    let lora = [
        "--task",
        "rte",
        "--method",
        "lora",
        "--r",
        "4",
        "--target-modules",
        "query,key",
        "--lr",
        "2e-4",
        "--seed",
        "7",
    ];
    let written = print(&lora);
    std::fs::write(&file, &written).unwrap();
    let config = ["--config", file.to_str().unwrap()];
    assert_eq!(print(&config), written);
    let changed = print(&[&config[..], &["--lr", "1e-3", "--use-dora", "--seed", "8"]].concat());
    let lines = |text: &str| text.lines().map(String::from).collect::<BTreeSet<_>>();
    let differs: Vec<String> = lines(&changed).difference(&lines(&written)).cloned().collect();
    assert_eq!(differs, ["learning_rate = 0.001", "seeds = [8]", "use_dora = true"]);
    // Another method has none of the file's options.
    let bitfit = print(&[&config[..], &["--method", "bitfit"]].concat());
    assert!(bitfit.contains("name = \"bitfit\"") && !bitfit.contains("lora_alpha"), "{bitfit}");
    assert_eq!(print(&["--recipe", "rte-lora"]).matches("starts_from = \"mnli-lora\"").count(), 1);
}

#[test]
fn what_a_recipe_says_is_not_said_by_options_beside_it() {
    let error = complaint(&["run", "--recipe", "mrpc-lora", "--lr", "1e-3"], &[]);
    assert!(error.contains("--lr is not taken with --recipe mrpc-lora"), "{error}");
    let error = complaint(&["run", "--recipe", "mrpc-lora", "--task", "rte"], &[]);
    assert!(error.contains("--task is not taken"), "{error}");
    let error = complaint(&["run", "--recipe", "mrpc-lorra"], &[]);
    assert!(error.contains("mrpc-lorra.toml") && error.contains("mrpc-lora"), "{error}");
    let error = complaint(&[&RUN[..], &["--starts-from", "mnli-lorra"]].concat(), &[]);
    assert!(error.contains("mnli-lorra.toml") && error.contains("mnli-lora"), "{error}");
}

#[test]
#[ignore = "needs models/: make test"]
fn a_recipe_in_a_file_of_ones_own_is_run_with_its_seeds_and_published_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (recipe, runs, published) = (path("own.toml"), path("runs"), path("results"));
    let text = format!(
        "about = 'A test.'\ntask = 'synthetic'\nmodel = '{DEFAULT_MODEL}'\nseeds = [1, 2]\n[method]\nname = 'bitfit'\n\
         [settings]\nepochs = 1\nbatch_size = 8\ntrain_limit = 16\n"
    );
    std::fs::write(&recipe, text).unwrap();
    let glue = |more: &[&str]| {
        let arguments = ["glue", &recipe, "--runs", &runs, "--results", &published];
        let output = peft_glue(&[&arguments[..], more].concat(), &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(glue(&["--list"]).contains("2 runs to do"));
    glue(&[]);
    assert!(glue(&[]).contains("every run has its record"));
    let records = trainer::results::load(published.as_ref()).unwrap();
    assert_eq!(records.iter().map(|record| record.run.seed).collect::<Vec<_>>(), [1, 2]);
    assert!(glue(&["--table"]).contains("| Synthetic, accuracy 0.8 | BitFit |"));
    assert!(glue(&["--verdicts"]).contains("- On Synthetic BitFit is "));
    let predictions = trainer::predictions::load(published.as_ref()).unwrap();
    assert!(records.iter().zip(&predictions).all(|(record, predictions)| predictions.are_of(record)));
    assert_eq!(predictions.len(), 2);

    let output = peft_glue(&["run", "--recipe", &recipe, "--seed", "2", "--runs", &runs, "--json"], &[]);
    let record: trainer::Record = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(record.thinned(150), records[1], "the run that the recipe describes has its record already");
}

#[test]
fn the_table_and_the_verdicts_in_the_documentation_are_those_of_the_published_records() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let page = std::fs::read_to_string(format!("{root}/docs/tasks.md")).unwrap();
    for (option, begin) in [("--table", "| "), ("--verdicts", "- ")] {
        let output = peft_glue(&["glue", option, "--results", &format!("{root}/results")], &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        // The verdicts on methods are there; those on baselines are a column of the table.
        let printed = text.split("\n\nEach method against").next().unwrap();
        let lines: Vec<&str> = printed.lines().filter(|line| line.starts_with(begin)).collect();
        assert!(lines.len() > 1, "{text}");
        assert!(page.contains(&lines.join("\n")), "docs/tasks.md: put in what peft-glue glue {option} prints");
    }
}

#[test]
fn merged_branches_are_for_forward_passes_only() {
    let replay = ["replay", "--task", "synthetic", "--method", "lora", "--batches", "batches.npz", "--merge"];
    let error = complaint(&replay, &[]);
    assert!(error.contains("--forward-only"), "{error}");
}

#[test]
fn the_data_command_says_which_copy_it_found() {
    let output = peft_glue(&["data"], &[("GLUE_OFFLINE", "1")]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("data: ") && text.contains("train"), "{text}");
}

/// A model without a tokenizer, and an adapter that Python's peft wrote.
const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../peft/tests/oracle/tiny-bert");
const DORA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../peft/tests/oracle/adapters/dora");

#[test]
fn an_adapter_brings_its_method_and_what_it_trains_is_listed() {
    let arguments = ["parameters", "--task", "mnli", "--model", TINY, "--adapter", DORA];
    let output = peft_glue(&arguments, &[("GLUE_OFFLINE", "1")]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("attention.self.query.lora_magnitude_vector"), "{text}");
    // PEFT's line for it, from adapters.json.
    assert!(text.ends_with("trainable params: 3,459 || all params: 26,310 || trainable%: 13.1471\n"), "{text}");
}

#[test]
fn a_method_or_an_adapter_is_needed_and_not_both() {
    let error = complaint(&["run", "--task", "synthetic"], &[]);
    assert!(error.contains("--method"), "{error}");
    let error = complaint(&[&RUN[..], &["--adapter", DORA]].concat(), &[]);
    assert!(error.contains("cannot be used with"), "{error}");
    let error = complaint(&["run", "--task", "synthetic", "--model", TINY, "--adapter", DORA], &[]);
    assert!(error.contains("a run trains anew"), "{error}");
}

#[test]
fn an_adapter_that_is_nowhere_is_an_error_that_names_the_file() {
    let error = complaint(&["predict", "--task", "mnli", "--model", TINY, "--adapter", "./nowhere"], &[]);
    assert!(error.contains("./nowhere/adapter_config.json") && error.contains("adapter_model.safetensors"), "{error}");
}

#[test]
fn options_of_lora_reach_the_model() {
    let arguments = [
        "parameters",
        "--task",
        "mnli",
        "--model",
        TINY,
        "--method",
        "lora",
        "--r",
        "3",
        "--target-modules",
        "all-linear",
        "--exclude-modules",
        "pooler.dense",
        "--rank-pattern",
        "query=2,output.dense=1",
        "--layers-to-transform",
        "1",
    ];
    // Layers go with a list of names only.
    let error = complaint(&arguments, &[("GLUE_OFFLINE", "1")]);
    assert!(error.contains("layers_to_transform is [1]"), "{error}");
    let without_layers = &arguments[..arguments.len() - 2];
    let output = peft_glue(without_layers, &[("GLUE_OFFLINE", "1")]);
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "[2, 32]  bert.encoder.layer.0.attention.self.query.lora_A.weight",
        "[1, 64]  bert.encoder.layer.1.output.dense.lora_A.weight",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert!(!text.contains("pooler.dense.lora_A"), "{text}");
    let error = complaint(&[without_layers, &["--alpha-pattern", "query"]].concat(), &[]);
    assert!(error.contains("expected NAME=VALUE"), "{error}");
}

#[test]
fn options_of_bottleneck_adapters_reach_the_model() {
    let parameters = ["parameters", "--task", "mnli", "--model", TINY, "--method", "bottleneck"];
    let printed = |options: &[&str]| {
        let output = peft_glue(&[&parameters[..], options].concat(), &[("GLUE_OFFLINE", "1")]);
        assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    // Width 32 over 16.
    let pfeiffer = printed(&[]);
    assert!(pfeiffer.contains("[2, 32]  bert.encoder.layer.0.output.adapter_down.weight"), "{pfeiffer}");
    assert!(!pfeiffer.contains("attention.output.adapter") && !pfeiffer.contains("LayerNorm"), "{pfeiffer}");
    let houlsby = printed(&["--adapter-style", "houlsby", "--bottleneck-size", "5", "--train-layer-norms"]);
    for line in [
        "[5, 32]  bert.encoder.layer.1.attention.output.adapter_down.weight",
        "[32, 5]  bert.encoder.layer.1.output.adapter_up.weight",
        "[32]  bert.embeddings.LayerNorm.weight",
    ] {
        assert!(houlsby.contains(line), "{line} is not in {houlsby}");
    }
    let parallel = printed(&["--adapter-style", "parallel"]);
    assert!(parallel.contains("[16, 32]  bert.encoder.layer.0.output.adapter_down.weight"), "{parallel}");

    for (options, part) in [
        (["--adapter-style", "pfeifer"], "expected one of `houlsby`, `pfeiffer`, `parallel`"),
        (["--non-linearity", "mish"], "unknown variant `mish`"),
        (["--reduction-factor", "0"], "reduction_factor is 0, expected at least 1"),
        (["--adapter-scaling", "0"], "scaling is 0"),
        (["--adapter-dropout", "1"], "dropout is 1"),
    ] {
        let error = complaint(&[&parameters[..], &options].concat(), &[("GLUE_OFFLINE", "1")]);
        assert!(error.contains(part), "{error}");
    }
    let both = ["--reduction-factor", "4", "--bottleneck-size", "8"];
    let error = complaint(&[&parameters[..], &both].concat(), &[]);
    assert!(error.contains("--bottleneck-size") && error.contains("reduction_factor"), "{error}");
}

#[test]
fn options_of_prompt_learning_reach_the_model() {
    let parameters = |arguments: &[&str]| {
        let output =
            peft_glue(&[&["parameters", "--task", "mnli", "--model", TINY, "--method"], arguments].concat(), &[]);
        assert!(output.status.success(), "{}", String::from_utf8(output.stderr).unwrap());
        String::from_utf8(output.stdout).unwrap()
    };
    for (arguments, lines) in [
        (&["prefix_tuning", "--num-virtual-tokens", "4"][..], &["[4, 128]  prompt_encoder.embedding.weight"][..]),
        (
            &["prefix_tuning", "--prefix-projection", "--encoder-hidden-size", "6", "--init-weights", "zero"],
            &["[20, 32]  prompt_encoder.embedding.weight", "[128, 6]  prompt_encoder.transform.2.weight"],
        ),
        (
            &["prompt_tuning", "--prompt-tuning-init", "SAMPLE_VOCAB", "--num-virtual-tokens", "7"],
            &["[7, 32]  prompt_encoder.embedding.weight"],
        ),
        (&["p_tuning", "--encoder-hidden-size", "6"], &["[6, 6]  prompt_encoder.mlp_head.2.weight"]),
    ] {
        let text = parameters(arguments);
        for line in lines {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
    let text =
        ["parameters", "--task", "mnli", "--model", TINY, "--method", "prompt_tuning", "--prompt-tuning-init", "TEXT"];
    let error = complaint(&text, &[]);
    assert!(error.contains("--prompt-tuning-init-text"), "{error}");
    let start =
        ["parameters", "--task", "mnli", "--model", TINY, "--method", "prefix_tuning", "--init-weights", "bert"];
    let error = complaint(&start, &[]);
    assert!(error.contains("--init-weights: init_weights \"bert\"") && error.contains("zero"), "{error}");
}

#[test]
fn lora_without_targets_adapts_the_layers_that_the_models_architecture_calls_for() {
    for (case, targets) in [
        ("roberta", ["query", "value"].as_slice()),
        ("distilbert", &["q_lin", "v_lin"]),
        ("mpnet", &["q", "v"]),
        ("deberta-v3", &["query_proj", "value_proj"]),
        ("modernbert", &["Wqkv"]),
    ] {
        let model = format!("{}/../peft/tests/oracle/encoders/{case}", env!("CARGO_MANIFEST_DIR"));
        let output = peft_glue(&["parameters", "--task", "mnli", "--method", "lora", "--model", &model], &[]);
        let printed = String::from_utf8(output.stdout).unwrap();
        let branches = printed.lines().filter_map(|line| line.split_once(".lora_A")).map(|(path, _)| path);
        let adapted: BTreeSet<&str> = branches.filter_map(|path| path.rsplit('.').next()).collect();
        assert_eq!(adapted, targets.iter().copied().collect(), "{case}: {printed}");
    }
}

const SEVERAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../peft/tests/oracle/several");

/// What a call that must succeed prints to the standard output.
fn printed(arguments: &[&str]) -> String {
    let output = peft_glue(arguments, &[("GLUE_OFFLINE", "1")]);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_parameters_are_drawn_as_a_tree() {
    let text = printed(&["parameters", "--tree", "--task", "mnli", "--model", TINY, "--adapter", DORA]);
    assert!(text.starts_with("*trained       all\n") && text.contains("├── encoder.layer.0-1\n"), "{text}");
    assert!(text.contains("*lora_magnitude_vector [32]") && text.ends_with("trainable%: 13.1471\n"), "{text}");
}

/// A copy of an adapter that names a base model.
fn adapter_naming(base: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let adapter = Path::new(DORA);
    std::fs::copy(adapter.join("adapter_model.safetensors"), copy.path().join("adapter_model.safetensors")).unwrap();
    let config = std::fs::read(adapter.join("adapter_config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["base_model_name_or_path"] = base.into();
    std::fs::write(copy.path().join("adapter_config.json"), config.to_string()).unwrap();
    copy
}

#[test]
fn an_adapter_brings_its_base_model_unless_another_is_given() {
    let parameters = ["parameters", "--task", "mnli", "--adapter"];
    let named = adapter_naming(TINY);
    let text = printed(&[&parameters[..], &[named.path().to_str().unwrap()]].concat());
    assert!(text.contains("lora_magnitude_vector") && text.contains("bert.encoder.layer.1."), "{text}");

    let elsewhere = adapter_naming("./not/here");
    let folder = elsewhere.path().to_str().unwrap();
    let error = complaint(&[&parameters[..], &[folder]].concat(), &[("GLUE_OFFLINE", "1")]);
    assert!(error.contains("./not/here") && error.contains("--model") && error.contains(folder), "{error}");
    printed(&[&parameters[..], &[folder, "--model", TINY]].concat());

    let nameless = adapter_naming("");
    let error = complaint(&[&parameters[..], &[nameless.path().to_str().unwrap()]].concat(), &[("GLUE_OFFLINE", "1")]);
    assert!(error.contains("names no base model: give --model"), "{error}");
}

/// What a call says beside its output.
fn said(arguments: &[&str]) -> String {
    let output = peft_glue(arguments, &[("GLUE_OFFLINE", "1")]);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_length_by_hand_must_fit_the_positions_and_the_default_adapts_and_says_so() {
    let bitfit = ["parameters", "--task", "mnli", "--method", "bitfit", "--model", TINY];
    assert!(said(&bitfit).contains("cut to 40 tokens and not to 128"));
    assert!(!said(&[&bitfit[..], &["--max-length", "40"]].concat()).contains("are cut to"));
    let error = complaint(&[&bitfit[..], &["--max-length", "64"]].concat(), &[("GLUE_OFFLINE", "1")]);
    assert!(error.contains("max-length is 64, expected at most 40"), "{error}");
    let prompt = ["--method", "prompt_tuning", "--num-virtual-tokens", "30", "--model", TINY];
    let prompt = [&["parameters", "--task", "mnli"][..], &prompt].concat();
    assert!(said(&prompt).contains("cut to 10 tokens"), "{}", said(&prompt));
}

#[test]
fn a_pooling_by_hand_wins_over_the_adapters_and_is_said() {
    let on_query_and_value = format!("{SEVERAL}/query_value");
    let adapter = ["parameters", "--task", "mnli", "--adapter", &on_query_and_value, "--model", TINY];
    assert!(!said(&adapter).contains("--pooling"));
    assert!(
        said(&[&adapter[..], &["--pooling", "mean"]].concat())
            .contains("--pooling mean, and the adapter was trained with cls")
    );
}

#[test]
fn adapters_are_combined_converted_and_merged_in_folders() {
    let there = tempfile::tempdir().unwrap();
    let folder = |name: &str| there.path().join(name).display().to_string();
    let (first, second) = (format!("{SEVERAL}/query_value=0.7"), format!("{SEVERAL}/key_value=-1.5"));
    let combined = folder("combined");
    let text = printed(&["adapter", "combine", &first, &second, "--combination-type", "cat", "--output", &combined]);
    assert_eq!(text, format!("LoRA r=5\nadapter: {combined}\n"));

    let converted = folder("converted");
    let text = printed(&["adapter", "convert", &combined, "--model", TINY, "--rank", "0.9", "--output", &converted]);
    let layers: Vec<&str> = text.lines().filter(|line| line.contains("% ")).collect();
    assert!(layers.len() == 6 && layers.iter().all(|line| line.contains("bert.encoder.layer.")), "{text}");
    let text = printed(&["parameters", "--task", "mnli", "--model", TINY, "--adapter", &converted]);
    assert!(text.contains("key.lora_A.weight") && text.contains("trainable params"), "{text}");

    let merged = folder("merged");
    let text = printed(&["adapter", "merge", &converted, "--model", TINY, "--output", &merged]);
    assert_eq!(text, format!("model: {merged}\n"));
    let text = printed(&["parameters", "--task", "mnli", "--model", &merged, "--method", "head"]);
    assert!(text.contains("classifier.weight"), "{text}");
}

#[test]
fn adapters_that_do_not_go_together_are_refused_and_nothing_is_written() {
    let there = tempfile::tempdir().unwrap();
    let output = there.path().join("combined").display().to_string();
    let weighted = |name: &str| format!("{SEVERAL}/{name}=0.5");
    let (lora, ia3) = (weighted("query_value"), weighted("outputs"));
    let error = complaint(&["adapter", "combine", &lora, &ia3, "--output", &output], &[]);
    assert!(error.contains("is (IA)³, the first LoRA"), "{error}");
    let error = complaint(&["adapter", "combine", &lora, &lora, "--output", &output, "--head", "other"], &[]);
    assert!(error.contains("--head other is none of the adapters"), "{error}");
    let error = complaint(&["adapter", "combine", &lora, "--combination-type", "tie", "--output", &output], &[]);
    assert!(error.contains("(nearest: ties)"), "{error}");
    assert!(!there.path().join("combined").exists());
}

/// GLUE of a row or two for training on each task, and of one whole test set, WNLI's.
fn tiny_glue(folder: &Path) {
    let put = |file: &str, text: &str| {
        std::fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
        std::fs::write(folder.join(file), text).unwrap();
    };
    put("CoLA/train.tsv", "a\t1\t\tA cat sleeps.\n");
    put("SST-2/train.tsv", "sentence\tlabel\nfine\t1\n");
    put("STS-B/train.tsv", "sentence1\tsentence2\tscore\na\tb\t2.5\n");
    put("MRPC/train.tsv", "#1 String\t#2 String\tQuality\na\tb\t1\n");
    put("QQP/train.tsv", "question1\tquestion2\tis_duplicate\na\tb\t0\n");
    put("MNLI/train.tsv", "sentence1\tsentence2\tgold_label\na\tb\tneutral\n");
    put("QNLI/train.tsv", "question\tsentence\tlabel\na\tb\tentailment\n");
    put("RTE/train.tsv", "sentence1\tsentence2\tlabel\na\tb\tentailment\n");
    for file in ["WNLI/train.tsv", "WNLI/dev.tsv"] {
        put(file, "sentence1\tsentence2\tlabel\nA cat sleeps.\tIt sleeps.\t1\nA cat sleeps.\tIt runs.\t0\n");
    }
    put("WNLI/test.tsv", &format!("sentence1\tsentence2\n{}", "A cat sleeps.\tIt sits.\n".repeat(146)));
}

#[test]
fn a_submission_of_nothing_but_majorities_is_refused_with_what_to_type() {
    let folder = tempfile::tempdir().unwrap();
    tiny_glue(folder.path());
    let (glue, results) = (folder.path().to_str().unwrap(), folder.path().join("results"));
    let submit = ["submit", "--method", "lora", "--results", results.to_str().unwrap()];
    let error = complaint(&submit, &[("GLUE_DIR", glue)]);
    assert!(error.contains(submit[4]) && error.contains("\"lora\"") && error.contains("make glue"), "{error}");
}

#[test]
#[ignore = "needs models/: make test"]
fn a_submission_says_where_each_file_comes_from_and_trains_again_what_has_no_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    tiny_glue(folder.path());
    let printed = |arguments: &[&str]| {
        let output = peft_glue(arguments, &[("GLUE_DIR", &path(""))]);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let (results, runs, zip) = (path("results"), path("runs"), path("new/submission.zip"));
    let wnli = ["run", "--task", "wnli", "--method", "bitfit", "--epochs", "1", "--runs", &path("others"), "--json"];
    std::fs::create_dir(&results).unwrap();
    std::fs::write(path("results/wnli.json"), printed(&wnli)).unwrap();

    let submit = ["submit", "--results", &results, "--runs", &runs, "--output", &zip];
    let list = printed(&[&submit[..], &["--list"]].concat());
    let again = format!("no weights in {runs} of WNLI, BitFit, seed 1: to be trained again, which took 0.0 min");
    let from_run = "WNLI.tsv        146  WNLI, BitFit, seed 1: validation accuracy ";
    assert!(list.contains(&again) && list.contains(from_run) && list.contains("2 of 635 (partial)"), "{list}");
    assert!(list.contains("MNLI-mm.tsv    9847  majority of the training set (no test set here)"), "{list}");
    assert!(!Path::new(&runs).exists() && !Path::new(&zip).exists());

    let made = printed(&submit);
    assert!(made.contains("all steps taken") && made.ends_with(&format!("submission: {zip}\n")), "{made}");
    assert!(Path::new(&zip).exists());
    let made = printed(&submit);
    assert!(!made.contains("no weights") && made.contains("found its record") && made.contains(from_run), "{made}");

    let error = complaint(&[&submit[..], &["--method", "lora"]].concat(), &[("GLUE_DIR", &path(""))]);
    assert!(error.contains("found records of bitfit"), "{error}");
    std::fs::remove_file(path("WNLI/test.tsv")).unwrap();
    let error = complaint(&submit, &[("GLUE_DIR", &path(""))]);
    assert!(error.contains("records of WNLI") && error.contains("GLUE_DIR"), "{error}");
}

#[test]
fn a_model_that_is_a_link_below_models_has_the_name_of_the_link_however_it_is_spelled() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peft/tests/oracle/tiny-bert");
    std::fs::create_dir(folder.path().join("models")).unwrap();
    std::os::unix::fs::symlink(tiny.canonicalize().unwrap(), folder.path().join("models/tiny")).unwrap();
    for spelled in ["tiny", "models/tiny", "./models/tiny/"] {
        let output = Command::new(env!("CARGO_BIN_EXE_peft-glue"))
            .args([&RUN[..], &["--model", spelled, "--max-length", "40", "--print-config"]].concat())
            .current_dir(folder.path())
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(printed.contains("model = \"tiny\""), "{spelled}: {printed}");
    }
}
