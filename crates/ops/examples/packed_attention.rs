//! Two sequences in one batch without padding: each attends to itself only, as if it were alone.
//! `cargo run -p peft-glue-ops --example packed_attention`

#![allow(clippy::print_stdout)] // An example is read where it is run.

use candle_core::{Device, Result, Tensor};
use ops::{AttentionOptions, Scores, Segments, attention};

fn main() -> Result<()> {
    let options = AttentionOptions { heads: 2, scores: Scores::Content, dropout: None };
    let [q, k, v] = [0, 1, 2].map(|_| Tensor::randn(0f32, 1.0, (7, 8), &Device::Cpu)); // (tokens, hidden)
    let (q, k, v) = (q?, k?, v?);
    let together = attention(&q, &k, &v, &Segments::from_lengths(&[3, 4]), options)?; // (7, 8)

    let of = |x: &Tensor, first: usize, length: usize| x.narrow(0, first, length)?.contiguous();
    for (first, length) in [(0, 3), (3, 4)] {
        let [q, k, v] = [&q, &k, &v].map(|x| of(x, first, length));
        let alone = attention(&q?, &k?, &v?, &Segments::from_lengths(&[length]), options)?; // (length, 8)
        let difference = (of(&together, first, length)? - alone)?.abs()?.max_all()?.to_scalar::<f32>()?;
        println!("{length} tokens from the {first}th on: differ from the same alone by {difference:.1e}");
        assert!(difference < 1e-6);
    }
    Ok(())
}

#[test]
fn it_runs() -> Result<()> {
    main()
}
