//! How the process keeps memory.

use std::mem::MaybeUninit;
use std::sync::Once;

use rayon::prelude::*;

use crate::cpu::float::Float;

/// Has freed memory kept for the next step instead of being given back to the system, and in pages of 2 MiB where the system has
/// such.
///
/// A training step frees and asks again for the same large buffers. glibc by default returns each at once, and the system
/// then has to clear every page anew: a quarter of the time of a step. Buffers of megabytes that are read from end to end also want
/// large pages, of which the processor remembers more than it does of 4 KiB ones. Elsewhere than on glibc this does nothing.
pub fn keep_freed_memory() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        // SAFETY: mallopt only sets parameters of the allocator, and may be called at any time. The block is the allocator's, and
        // advice changes nothing that it holds.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            // Only the first arena keeps what is freed; those of further threads give whole heaps back.
            libc::mallopt(libc::M_ARENA_MAX, 1);
            // Where this is freed, later buffers come from. Nobody writes to it now, so that it takes addresses, not memory.
            let block = libc::malloc(ADVISED);
            if !block.is_null() {
                let begin = block.map_addr(|address| address.next_multiple_of(LARGE_PAGE));
                libc::madvise(begin, ADVISED - LARGE_PAGE, libc::MADV_HUGEPAGE);
                libc::free(block);
            }
        }
    });
}

/// How many bytes of addresses are to be in large pages: below the 2 GiB from which on freed memory is given back all the same.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ADVISED: usize = 3 << 29;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_PAGE: usize = 2 << 20;

/// Fewer elements are written in less time than a sleeping thread takes to wake.
const FEW: usize = 1 << 17;

/// A new vector, made in pieces of `size` on all cores: `write(first, values)` is given each, all zeros and in the cache.
pub(crate) fn in_pieces<T: Float>(length: usize, size: usize, write: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let (mut values, size) = (Vec::with_capacity(length), size.max(1));
    let slots = &mut values.spare_capacity_mut()[..length];
    let fill = |(index, piece)| write(index * size, zeroed(piece));
    if length < FEW {
        slots.chunks_mut(size).enumerate().for_each(fill);
    } else {
        slots.par_chunks_mut(size).enumerate().for_each(fill);
    }
    // SAFETY: the capacity is there, and every element has been written.
    unsafe { values.set_len(length) };
    values
}

/// Two new vectors of one length, made side by side as by [`in_pieces`].
pub(crate) fn in_pairs_of_pieces<T: Float>(
    length: usize,
    size: usize,
    write: impl Fn(usize, &mut [T], &mut [T]) + Sync,
) -> (Vec<T>, Vec<T>) {
    let (mut first, mut second, size) = (Vec::with_capacity(length), Vec::with_capacity(length), size.max(1));
    let (firsts, seconds) = (&mut first.spare_capacity_mut()[..length], &mut second.spare_capacity_mut()[..length]);
    let fill = |(index, (first, second))| write(index * size, zeroed(first), zeroed(second));
    if length < FEW {
        firsts.chunks_mut(size).zip(seconds.chunks_mut(size)).enumerate().for_each(fill);
    } else {
        firsts.par_chunks_mut(size).zip(seconds.par_chunks_mut(size)).enumerate().for_each(fill);
    }
    // SAFETY: the capacity is there, and every element has been written.
    unsafe {
        first.set_len(length);
        second.set_len(length);
    }
    (first, second)
}

/// The slots, each now 0.
fn zeroed<T: Float>(slots: &mut [MaybeUninit<T>]) -> &mut [T] {
    for slot in &mut *slots {
        slot.write(T::zero());
    }
    // SAFETY: every element has just been written.
    unsafe { slots.assume_init_mut() }
}

/// A copy, made on all cores, of which `change(first, values)` is given each piece while it is in the cache.
pub(crate) fn changed<T: Float>(values: &[T], size: usize, change: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    in_pieces(values.len(), size, |first, piece| {
        piece.copy_from_slice(&values[first..first + piece.len()]);
        change(first, piece);
    })
}

/// Zeros, written on all cores.
pub(crate) fn zeros<T: Float>(length: usize) -> Vec<T> {
    in_pieces(length, 1 << 14, |_, _| {})
}
