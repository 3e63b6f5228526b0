//! How much of an encoder each method trains:
//! `cargo run -p peft-glue-tuners --example trained_parameters -- FOLDER`, with config.json and model.safetensors in it.

#![allow(clippy::print_stdout)] // An example is read where it is run.

use peft::{Ia3, LnTuning, Method, Model, ModelOptions, Pretrained, Result};

fn main() -> Result<()> {
    report(&std::env::args().nth(1).unwrap_or_else(|| "models/all-mpnet-base-v2".into()))
}

fn report(folder: &str) -> Result<()> {
    let pretrained = Pretrained::load(folder)?;
    let methods = [
        Method::Head,
        Method::LnTuning(LnTuning::default()),
        Method::Ia3(Ia3::default()),
        Method::bitfit(),
        Method::lora(1),
        Method::lora(8),
        Method::lora(64),
        Method::Full,
    ];
    for method in methods {
        let name = method.to_string();
        let model = Model::new(&pretrained, &ModelOptions::new(method, 2))?; // two labels
        println!("{name:20} {}", model.trainable_report());
    }
    Ok(())
}

#[test]
fn it_runs() -> Result<()> {
    report(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/tiny-bert"))
}
