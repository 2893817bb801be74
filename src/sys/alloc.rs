//! The allocator of a process that lives for milliseconds.
//!
//! Sizes are rounded up to a class; a freed block goes onto its class's list and is the next one
//! handed out. Blocks are cut off a chunk that grows by `mmap`; nothing is ever merged or given
//! back. musl's own allocator, which searches and locks, cost 150 µs more for one command line
//! and one config.json (static musl, 6.18). damda has one thread, which the lists rely on.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ptr::{self, NonNull};

/// Bytes that are asked of the kernel at a time: enough for a usual command's whole life.
const CHUNK: usize = 256 * 1024;
/// The alignment and the least size of every block.
const ALIGN: usize = 16;
/// Classes are 16, 32, 64 … bytes; above the last, a block is a mapping of its own.
const CLASSES: usize = 16;

/// See the module's text.
pub struct Allocator(UnsafeCell<Lists>);

struct Lists {
    free: [*mut u8; CLASSES],
    next: *mut u8,
    left: usize,
}

// SAFETY: damda never makes a second thread; the release binary is built from code that holds to
// it, and unit tests, which do run threads, use the system's allocator (see main.rs).
unsafe impl Sync for Allocator {}

impl Allocator {
    /// An allocator that holds nothing yet.
    pub const fn new() -> Self {
        Allocator(UnsafeCell::new(Lists { free: [ptr::null_mut(); CLASSES], next: ptr::null_mut(), left: 0 }))
    }
}

/// The class that holds `size` bytes, or None for a mapping of its own.
fn class(size: usize) -> Option<usize> {
    let class =
        size.max(ALIGN).next_power_of_two().trailing_zeros() as usize - ALIGN.trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

/// Anonymous memory from the kernel, or null.
fn map(size: usize) -> *mut u8 {
    // SAFETY: a new private anonymous mapping touches no memory that is in use.
    let address = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED { ptr::null_mut() } else { address.cast() }
}

impl Lists {
    fn take(&mut self, class: usize) -> *mut u8 {
        let block = self.free[class];
        if !block.is_null() {
            // SAFETY: a block on a list is at least 16 bytes, unused, and begins with the
            // pointer that `GlobalAlloc::dealloc` wrote there.
            self.free[class] = unsafe { block.cast::<*mut u8>().read() };
            return block;
        }
        let size = ALIGN << class;
        if size > self.left {
            let bytes = size.max(CHUNK);
            let chunk = map(bytes);
            if chunk.is_null() {
                return chunk;
            }
            self.next = chunk;
            self.left = bytes;
        }
        let block = self.next;
        // SAFETY: `left` bytes are ours from `next` on, and `size` is not more than `left`.
        self.next = unsafe { self.next.add(size) };
        self.left -= size;
        block
    }
}

// SAFETY: blocks of one class never overlap, are as large and as aligned as asked for (the first
// block of a chunk is page-aligned and all sizes are multiples of 16), and are handed out again
// only after they were freed.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // No type of damda's asks for more than 16; a mapping serves the one that might.
        let class = class(layout.size()).filter(|_| layout.align() <= ALIGN);
        match class {
            // SAFETY: one thread, and no allocation happens inside `take`.
            Some(class) => unsafe { (*self.0.get()).take(class) },
            None => map(layout.size()),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match class(layout.size()).filter(|_| layout.align() <= ALIGN) {
            // SAFETY: the caller gives the block back; it is at least 16 bytes, for the link.
            Some(class) => unsafe {
                let lists = &mut *self.0.get();
                block.cast::<*mut u8>().write(lists.free[class]);
                lists.free[class] = block;
            },
            // SAFETY: a block without a class is a mapping of exactly this size.
            None => unsafe {
                libc::munmap(block.cast(), layout.size());
            },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if layout.align() <= ALIGN
            && class(layout.size()).is_some()
            && class(layout.size()) == class(new_size)
        {
            return block;
        }
        // SAFETY: the caller's layout is valid, so the same with another size is as well.
        unsafe {
            let new_layout = Layout::from_size_align_unchecked(new_size, layout.align());
            let Some(new_block) = NonNull::new(self.alloc(new_layout)) else {
                return ptr::null_mut();
            };
            ptr::copy_nonoverlapping(block, new_block.as_ptr(), layout.size().min(new_size));
            self.dealloc(block, layout);
            new_block.as_ptr()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_they_are_for() {
        for (size, expected) in [(0, Some(0)), (16, Some(0)), (17, Some(1)), (32, Some(1)), (4096, Some(8))] {
            assert_eq!(class(size), expected, "{size}");
        }
        assert_eq!(class(ALIGN << (CLASSES - 1)), Some(CLASSES - 1));
        assert_eq!(class((ALIGN << (CLASSES - 1)) + 1), None);
    }

    #[test]
    fn blocks_are_apart_keep_their_bytes_and_come_back() {
        let allocator = Allocator::new();
        let layout = |size| Layout::from_size_align(size, 8).unwrap();
        // SAFETY: every block is used within its size and freed once with its own layout.
        unsafe {
            let blocks: Vec<_> = (1..2000usize)
                .map(|size| {
                    let block = allocator.alloc(layout(size));
                    block.write_bytes(size as u8, size);
                    (block, size)
                })
                .collect();
            for &(block, size) in &blocks {
                assert_eq!(block as usize % ALIGN, 0);
                assert!(std::slice::from_raw_parts(block, size).iter().all(|&byte| byte == size as u8));
            }
            let (first, size) = blocks[100];
            allocator.dealloc(first, layout(size));
            assert_eq!(allocator.alloc(layout(size)), first, "the block last freed is the next one used");
            first.write_bytes(size as u8, size);
            let grown = allocator.realloc(first, layout(size), 3_000_000);
            assert!(std::slice::from_raw_parts(grown, size).iter().all(|&byte| byte == size as u8));
            allocator.dealloc(grown, layout(3_000_000));
        }
    }
}
