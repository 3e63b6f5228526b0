//! How the process keeps memory.

use std::sync::Once;

use rayon::prelude::*;

use crate::float::Float;

/// Has freed memory kept for the next step instead of being given back to the system.
///
/// A training step frees and asks again for the same large buffers. glibc by default returns each at once, and the system
/// then has to clear every page anew: a quarter of the time of a step. Elsewhere than on glibc this does nothing.
pub fn keep_freed_memory() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        // SAFETY: mallopt only sets parameters of the allocator, and may be called at any time.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            // Only the first arena keeps what is freed; those of further threads give whole heaps back.
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
    });
}

/// A new vector, made in pieces of `size` on all cores: `write(first, values)` is given each, all zeros and in the cache.
pub(crate) fn in_pieces<T: Float>(length: usize, size: usize, write: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let mut values = Vec::with_capacity(length);
    let pieces = values.spare_capacity_mut()[..length].par_chunks_mut(size.max(1));
    pieces.enumerate().for_each(|(index, piece)| {
        for value in &mut *piece {
            value.write(T::zero());
        }
        // SAFETY: every element has just been written.
        write(index * size, unsafe { piece.assume_init_mut() });
    });
    // SAFETY: the capacity is there, and every element has been written.
    unsafe { values.set_len(length) };
    values
}

/// Zeros, written on all cores.
pub(crate) fn zeros<T: Float>(length: usize) -> Vec<T> {
    in_pieces(length, 1 << 14, |_, _| {})
}
