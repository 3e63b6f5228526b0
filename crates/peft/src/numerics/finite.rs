//! Whether the numbers of a tensor are all finite.

use candle_core::{CpuStorage, DType, Storage, Tensor};

use crate::error::Result;

/// How many numbers are looked at before an answer ends the search: enough for the processor to take several at once.
const PIECE: usize = 1 << 14;

/// Whether every number of a tensor is finite, as f64 if they are of that type and as f32 otherwise.
pub(crate) fn is_finite(tensor: &Tensor) -> Result<bool> {
    let tensor = match tensor.dtype() {
        DType::F32 | DType::F64 => tensor.flatten_all()?,
        _ => tensor.to_dtype(DType::F32)?.flatten_all()?,
    };
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((first, last))) => {
            Ok(all(&values[first..last], |value| value.is_finite()))
        }
        (Storage::Cpu(CpuStorage::F64(values)), Some((first, last))) => {
            Ok(all(&values[first..last], |value| value.is_finite()))
        }
        _ => Ok(all(&tensor.to_dtype(DType::F64)?.to_vec1::<f64>()?, |value| value.is_finite())),
    }
}

fn all<T>(values: &[T], holds: impl Fn(&T) -> bool) -> bool {
    values.chunks(PIECE).all(|piece| piece.iter().fold(true, |so_far, value| so_far & holds(value)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use candle_core::Device;

    use super::*;

    #[test]
    fn one_number_that_is_not_finite_is_found_wherever_it_stands() {
        for wrong in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for place in [0, 1, PIECE, 2 * PIECE + 2] {
                let mut values = vec![1.5; 2 * PIECE + 3];
                for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
                    let tensor = |values: &[f64]| Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                    values[place] = 1.5;
                    assert!(is_finite(&tensor(&values)).unwrap());
                    values[place] = wrong;
                    assert!(!is_finite(&tensor(&values)).unwrap(), "{wrong} at {place} in {dtype:?}");
                }
            }
        }
        assert!(is_finite(&Tensor::zeros((3, 0), DType::F32, &Device::Cpu).unwrap()).unwrap());
    }

    #[test]
    fn what_f32_cannot_hold_is_not_finite_in_f32() {
        let large = Tensor::new(&[1e300], &Device::Cpu).unwrap();
        assert!(is_finite(&large).unwrap());
        assert!(!is_finite(&large.to_dtype(DType::F32).unwrap()).unwrap());
    }
}
