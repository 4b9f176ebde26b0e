//! An allocator without a lock, for this test alone: each thread keeps what it frees for itself.
//!
//! The system's allocator has a lock for each of its arenas. A lookup can be the last that looks at an
//! entry a writer has replaced; then it frees it, into the arena of the writer, and waits when the writer was stopped
//! in the middle of an allocation. That is seen within a few stops, and it is not what is tested here.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ptr::null_mut;

/// The smallest block, as a power of two.
const SMALLEST: u32 = 4;
/// Sizes of blocks: 16 bytes to 64 KiB. What is larger is mapped on its own.
const SIZES: usize = 13;
/// Blocks are cut from pieces of this size.
const PIECE: usize = 1 << 20;

struct Own {
    /// Blocks that are free, by size; each begins with the address of the next.
    free: [Cell<*mut u8>; SIZES],
    /// What is left of the piece that blocks are cut from.
    at: Cell<usize>,
    end: Cell<usize>,
}

thread_local! {
    static OWN: Own =
        const { Own { free: [const { Cell::new(null_mut()) }; SIZES], at: Cell::new(0), end: Cell::new(0) } };
}

pub(crate) struct OfEachThread;

/// Which size of block holds `layout`; none when it is larger than all.
fn class(layout: Layout) -> Option<usize> {
    let bytes = layout.size().max(layout.align()).next_power_of_two().max(1 << SMALLEST);
    let class = (bytes.trailing_zeros() - SMALLEST) as usize;
    (class < SIZES).then_some(class)
}

#[allow(unsafe_code)]
fn map(bytes: usize) -> *mut u8 {
    // SAFETY: a new private mapping; nothing else is at its address.
    let piece = unsafe {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::mmap(null_mut(), bytes, access, kind, -1, 0)
    };
    if piece == libc::MAP_FAILED { null_mut() } else { piece.cast() }
}

// SAFETY: a block is handed out once until it is freed: it is in the list of one thread, or cut from its piece, or
// mapped on its own. Its address is a multiple of its size, which is at least the alignment; a page's is for
// those mapped on their own, and nothing here asks for more.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for OfEachThread {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(class) = class(layout) else { return map(layout.size()) };
        OWN.with(|own| {
            let block = own.free[class].get();
            if !block.is_null() {
                // SAFETY: written by `dealloc`, and nobody else's since.
                own.free[class].set(unsafe { block.cast::<*mut u8>().read() });
                return block;
            }
            let bytes = 1 << (SMALLEST as usize + class);
            let mut at = own.at.get().next_multiple_of(bytes);
            if at + bytes > own.end.get() {
                let piece = map(PIECE) as usize;
                if piece == 0 {
                    return null_mut();
                }
                own.end.set(piece + PIECE);
                at = piece.next_multiple_of(bytes);
            }
            own.at.set(at + bytes);
            at as *mut u8
        })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(class) = class(layout) else {
            // SAFETY: mapped by `alloc`, with this size.
            unsafe { libc::munmap(block.cast(), layout.size()) };
            return;
        };
        OWN.with(|own| {
            // SAFETY: nobody uses the block any more, and it has room for an address.
            unsafe { block.cast::<*mut u8>().write(own.free[class].get()) };
            own.free[class].set(block);
        });
    }
}
