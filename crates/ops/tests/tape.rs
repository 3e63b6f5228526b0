//! The gradients of what was recorded, against those of candle's own backward pass.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use candle_core::{Device, Result, Tensor, Var};
use ops::{Activation, AttentionOptions, Dropout, Precision, RelativeRows, Scores, Segments, Weight};

fn variable(shape: (usize, usize)) -> Var {
    let values: Vec<f64> = (0..shape.0 * shape.1).map(|i| (i as f64 * 0.7).sin()).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

/// A scalar in which `x` has four uses, one of them through a weight that is used twice.
fn scalar(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let layer = Weight::new(weight.clone(), Precision::F32)?;
    let first = ops::activation(&ops::linear(x, &layer, None)?, Activation::Gelu)?;
    let second = ops::linear(&ops::add_dropout(&first, x, Dropout::new(0.2, 3))?, &layer, None)?;
    let sum = ops::add(&ops::add(&second, x)?, x)?;
    ops::cross_entropy(&sum, &Tensor::new(&[0u32, 2, 1, 1], &Device::Cpu)?)
}

#[test]
fn recorded_gradients_are_those_of_candles_graph() -> Result<()> {
    let (x, weight) = (variable((4, 3)), variable((3, 3)));
    let expected = scalar(&x, &weight)?.backward()?;
    let recorded = ops::record(|| scalar(&x, &weight))?;
    assert_eq!(recorded.value().to_scalar::<f64>()?, scalar(&x, &weight)?.to_scalar::<f64>()?);
    let found = recorded.gradients()?;
    for parameter in [&x, &weight] {
        let difference = (found.get(parameter).unwrap() - expected.get(parameter).unwrap())?.abs()?;
        let difference = difference.flatten_all()?.max(0)?.to_scalar::<f64>()?;
        // Both add up to four numbers below 10, in another order.
        assert!(difference <= 40.0 * f64::EPSILON, "{difference}");
    }
    Ok(())
}

#[test]
fn a_frozen_tensor_has_no_recorded_gradient_and_nothing_leads_to_it() -> Result<()> {
    let (x, weight) = (variable((4, 3)), variable((3, 3)));
    let frozen = x.as_detached_tensor();
    let gradients = ops::record(|| scalar(&frozen, &weight))?.gradients()?;
    assert!(gradients.get(&frozen).is_none() && gradients.get(&weight).is_some());
    Ok(())
}

#[test]
fn an_operation_of_candles_on_a_parameter_is_refused_while_recording() -> Result<()> {
    let (x, weight) = (variable((4, 3)), variable((3, 3)));
    let error = ops::record(|| scalar(&(x.as_tensor() * 2.0)?, &weight)).map(drop).unwrap_err();
    assert!(error.to_string().contains("would be lost"), "{error}");
    // A failure ends the recording.
    assert!(scalar(&x, &weight)?.backward()?.get(&x).is_some());
    Ok(())
}

#[test]
fn without_gradients_nothing_is_kept() -> Result<()> {
    let (x, weight) = (variable((4, 3)), variable((3, 3)));
    let value = ops::without_gradients(|| scalar(&x, &weight))?;
    assert!(!value.track_op());
    assert!(scalar(&x, &weight)?.track_op());
    Ok(())
}

#[test]
fn work_that_a_worker_begins_in_the_midst_of_recorded_work_is_no_part_of_it() -> Result<()> {
    let (x, weight) = (variable((4, 3)), variable((3, 3)));
    let (is_candles, has_gradient) = ops::on_workers(&Device::Cpu, || -> Result<_> {
        let mut is_candles = None;
        let recorded = ops::record(|| {
            is_candles = Some(ops::on_workers(&Device::Cpu, || scalar(&x, &weight))?.track_op());
            scalar(&x, &weight)
        })?;
        Ok((is_candles, recorded.gradients()?.get(&x).is_some()))
    })?;
    assert_eq!((is_candles, has_gradient), (Some(true), true));
    Ok(())
}

/// candle's graph takes three inputs, so that there the values are joined to the keys.
#[test]
fn attention_with_a_table_is_the_same_recorded_and_in_candles_graph() -> Result<()> {
    let inputs = [(6, 4), (8, 4), (8, 4), (5, 2), (5, 4), (5, 4)].map(variable);
    let [query, key, value, bias, positions, others] = inputs.each_ref();
    let (segments, rows) = (Segments::from_lengths(&[2, 4]), RelativeRows::new(5, |d| (d.clamp(-2, 2) + 2) as usize));
    let all = Scores::Disentangled { key: Some(positions), query: Some(others), rows: &rows };
    for scores in [Scores::Bias { table: bias, rows: &rows }, all] {
        let options = AttentionOptions { heads: 2, scores, dropout: Dropout::new(0.2, 3) };
        let loss = || {
            let output = ops::attention(query, key, value, &segments, options)?;
            ops::cross_entropy(&output, &Tensor::new(&[0u32, 2, 1, 1, 3, 0], &Device::Cpu)?)
        };
        let (expected, recorded) = (loss()?, ops::record(loss)?);
        assert_eq!(recorded.value().to_scalar::<f64>()?, expected.to_scalar::<f64>()?);
        let (expected, found) = (expected.backward()?, recorded.gradients()?);
        for parameter in &inputs {
            match (found.get(parameter), expected.get(parameter)) {
                (Some(found), Some(expected)) => {
                    let difference = (found - expected)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
                    assert!(difference <= 1e-15, "{difference}");
                }
                (found, expected) => assert_eq!(found.is_some(), expected.is_some()),
            }
        }
    }
    Ok(())
}
