//! How the process keeps memory.

use std::sync::Once;

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
