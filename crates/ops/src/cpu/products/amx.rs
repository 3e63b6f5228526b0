//! Products of bf16 pairs by AMX, the matrix unit of newer Xeons: one instruction multiplies 16 rows of 32 numbers by 32 rows of
//! 16, and adds the result to 16 x 16 sums in f32.
//!
//! Rust has no stable intrinsics for it, so this is assembly. The compiler knows nothing of the tile registers and never touches them:
//! they are the unit's from [`Unit::take`] on, which costs as much as some products, until it is dropped.

use std::arch::asm;
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

use crate::cpu::products::tiles::{MOST_ROWS, Number, Stream, WIDTH};

/// Words in a row of a tile register, and its rows.
const SIDE: usize = 16;

/// Whether the processor has AMX with bf16 and the system lets this process use it.
pub(crate) fn is_there() -> bool {
    static IS_THERE: OnceLock<bool> = OnceLock::new();
    *IS_THERE.get_or_init(|| {
        const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const TILE_DATA: libc::c_long = 18;
        let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
        // The registers are 8 KiB that the system saves for each thread, so it wants to be asked (Linux 5.16 and later).
        // SAFETY: this call only grants a permission, and fails where the system does not know it.
        features & BF16_AND_TILES == BF16_AND_TILES
            && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) } == 0
    })
}

/// The layout of the eight tile registers, as `ldtilecfg` reads it: palette 1, and for each its bytes per row and its rows.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

thread_local! {
    /// How many units this thread has taken.
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

/// The unit of the calling thread, its registers laid out as whole tiles.
pub(crate) struct Unit(PhantomData<*const ()>);

impl Unit {
    /// # Safety
    /// Asks for [`is_there`].
    pub(super) unsafe fn take() -> Self {
        TAKEN.set(TAKEN.get() + 1);
        // SAFETY: the unit is there, and the layout one that it has.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &WHOLE_TILES, options(nostack, readonly)) };
        Self(PhantomData)
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        TAKEN.set(TAKEN.get() - 1);
        if TAKEN.get() == 0 {
            // SAFETY: nobody on this thread uses the registers any more.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}

static WHOLE_TILES: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// As many of a stream's steps as fill whole tiles.
pub(crate) fn whole_steps(stream: &Stream) -> usize {
    stream.steps / SIDE * SIDE
}

/// Asks for five rows of the next tiles of the left side, and for 512 bytes of the panel's. To ask for what is not there does no harm.
macro_rules! fetch {
    () => {
        concat!(
            fetch!(row),
            fetch!(row),
            fetch!(row),
            fetch!(row),
            fetch!(row),
            "prefetcht0 [{ahead}]\n",
            "prefetcht0 [{ahead} + 64]\n",
            "prefetcht0 [{ahead} + 128]\n",
            "prefetcht0 [{ahead} + 192]\n",
            "prefetcht0 [{ahead} + 256]\n",
            "prefetcht0 [{ahead} + 320]\n",
            "prefetcht0 [{ahead} + 384]\n",
            "prefetcht0 [{ahead} + 448]\n",
            "add {ahead}, 512\n",
        )
    };
    (row) => {
        "prefetcht0 [{row} + 64]\nadd {row}, {left_stride}\n"
    };
}

impl Unit {
    /// Writes the products of [`MOST_ROWS`] rows of a stream of bf16 with its whole panel over [`whole_steps`], each added to what its
    /// column begins with, to rows of `target` that begin `stride` numbers apart.
    ///
    /// # Safety
    /// The target must have [`MOST_ROWS`] rows of [`WIDTH`] columns that may be written.
    pub(super) unsafe fn multiply(&self, stream: &Stream, begin: &[f32; WIDTH], target: *mut f32, stride: usize) {
        const { assert!(SIDE == 1 << 4 && MOST_ROWS == 2 * SIDE && WIDTH == 3 * SIDE) };
        let steps = whole_steps(stream);
        assert!(stream.number == Number::Bf16 && stream.step_stride == 1 && steps > 0);
        assert!(stream.left.len() > (MOST_ROWS - 1) * stream.row_stride + steps - 1);
        assert!(stream.panel_stride == WIDTH && stream.panel.len() >= steps * WIDTH);
        // Six tiles of sums (0 to 5), one of the left side (6) and one of the panel (7). Upper and lower half of the rows take turns,
        // so that of two neighboring products one factor is there already. Beside each product a sixth of what the next round reads is
        // fetched: five rows of the left side, and eight cache lines of the panel.
        //
        // SAFETY: rows, panel and target are as long as is read and written (asserted above, and promised). Every register that is written
        // is named, but for the tiles, which are the unit's.
        unsafe {
            asm!(
                // Every row of a tile begins with the same numbers: rows that are no bytes apart.
                "tileloadd tmm0, [{begin} + {row}]",
                "tileloadd tmm1, [{begin} + {row} + 64]",
                "tileloadd tmm2, [{begin} + {row} + 128]",
                "tileloadd tmm3, [{begin} + {row}]",
                "tileloadd tmm4, [{begin} + {row} + 64]",
                "tileloadd tmm5, [{begin} + {row} + 128]",
                "2:",
                "mov {row}, {upper}",
                "tileloadd tmm7, [{panel} + {panel_stride}]",
                "tileloadd tmm6, [{upper} + {left_stride}]",
                "tdpbf16ps tmm0, tmm6, tmm7",
                fetch!(),
                "tileloadd tmm6, [{lower} + {left_stride}]",
                "tdpbf16ps tmm3, tmm6, tmm7",
                fetch!(),
                "tileloadd tmm7, [{panel} + {panel_stride} + 64]",
                "tdpbf16ps tmm4, tmm6, tmm7",
                fetch!(),
                "tileloadd tmm6, [{upper} + {left_stride}]",
                "tdpbf16ps tmm1, tmm6, tmm7",
                fetch!(),
                "tileloadd tmm7, [{panel} + {panel_stride} + 128]",
                "tdpbf16ps tmm2, tmm6, tmm7",
                fetch!(),
                "tileloadd tmm6, [{lower} + {left_stride}]",
                "tdpbf16ps tmm5, tmm6, tmm7",
                fetch!(),
                "add {upper}, 64",
                "add {lower}, 64",
                "add {panel}, {TILE_OF_PANEL}",
                "dec {tiles}",
                "jnz 2b",
                "tilestored [{target} + {stride}], tmm0",
                "tilestored [{target} + {stride} + 64], tmm1",
                "tilestored [{target} + {stride} + 128], tmm2",
                "mov {row}, {stride}",
                "shl {row}, 4",
                "add {target}, {row}",
                "tilestored [{target} + {stride}], tmm3",
                "tilestored [{target} + {stride} + 64], tmm4",
                "tilestored [{target} + {stride} + 128], tmm5",
                TILE_OF_PANEL = const 4 * SIDE * WIDTH,
                begin = in(reg) begin,
                row = inout(reg) 0usize => _,
                ahead = inout(reg) stream.panel.as_ptr().wrapping_add(SIDE * WIDTH) => _,
                upper = inout(reg) stream.left.as_ptr() => _,
                lower = inout(reg) stream.left.as_ptr().add(SIDE * stream.row_stride) => _,
                left_stride = in(reg) 4 * stream.row_stride,
                panel = inout(reg) stream.panel.as_ptr() => _,
                panel_stride = in(reg) 4 * WIDTH,
                tiles = inout(reg) steps / SIDE => _,
                target = inout(reg) target => _,
                stride = in(reg) 4 * stride,
                options(nostack),
            );
        }
    }
}
