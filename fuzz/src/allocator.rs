//! An allocator that counts, and ends the process where there is more than a limit: no reader has use for so much.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that an input may take besides what was there before it.
pub const LIMIT: usize = 512 << 20;
/// The exit status of a process in which an input took more.
pub const EXIT_STATUS: i32 = 77;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
static ALLOWED: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The system's allocator, counted.
pub struct Counting;

/// Begins an input: what it takes is counted from here.
pub fn begin() {
    let now = NOW.load(Ordering::Relaxed);
    MOST.store(now, Ordering::Relaxed);
    ALLOWED.store(now.saturating_add(LIMIT), Ordering::Relaxed);
}

/// Ends an input. Returns the most bytes that it had at once.
pub fn end() -> usize {
    let before = ALLOWED.swap(usize::MAX, Ordering::Relaxed).saturating_sub(LIMIT);
    MOST.load(Ordering::Relaxed).saturating_sub(before)
}

fn add(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
    MOST.fetch_max(now, Ordering::Relaxed);
    if now > ALLOWED.load(Ordering::Relaxed) {
        // SAFETY: it ends the process, and calls nothing that takes memory.
        unsafe { libc::_exit(EXIT_STATUS) }
    }
}

// SAFETY: all memory is the system allocator's; only sizes are counted besides.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: as the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(size);
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
