//! Memory that forgets: while a [`Wiping`] guard lives, what its thread frees is wiped first.
//!
//! A manifest passes through a YAML parser, whose buffers hold the encoded key and are not ours to
//! wipe. The allocator is the one place that sees all of them go. Outside a guard it costs one look
//! at a thread-local number per free, and nothing on the path of a guest's requests frees memory.
//!
//! Invariant: a block freed or moved by a thread that holds a guard contains only zeros when it goes
//! back to the system's allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use zeroize::Zeroize;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Makes the current thread wipe what it frees, until it is dropped. Guards may be nested.
#[derive(Debug)]
pub struct Wiping {
    /// The guard counts for the thread that made it, so it must not move to another.
    not_send: PhantomData<*const ()>,
}

impl Wiping {
    /// Starts wiping.
    pub fn start() -> Wiping {
        GUARDS.set(GUARDS.get() + 1);
        Wiping { not_send: PhantomData }
    }
}

impl Drop for Wiping {
    fn drop(&mut self) {
        GUARDS.set(GUARDS.get() - 1);
    }
}

thread_local! {
    /// Guards alive on this thread. Constant and without a destructor, so that the allocator can
    /// look at it at any time in a thread's life.
    static GUARDS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, with wiping.
struct Allocator;

// SAFETY: every block comes from and goes back to `System` with the layout it was asked for; a block
// is only written to when its owner has given it up, or, for a fresh one, before it is handed out.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`, which is System's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc_zeroed`, which is System's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if GUARDS.get() > 0 {
            // SAFETY: the caller gives up a live block of this layout.
            unsafe { wipe(block, layout.size()) };
        }
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`, which is System's.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if GUARDS.get() == 0 {
            // SAFETY: the caller keeps the contract of `GlobalAlloc::realloc`, which is System's.
            return unsafe { System.realloc(block, layout, new_size) };
        }
        // SAFETY: the caller promises that `new_size`, rounded up to the alignment, is a valid size.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: the caller promises that `new_size` is not zero.
        let new_block = unsafe { System.alloc(new_layout) };
        if !new_block.is_null() {
            // SAFETY: both blocks are live, distinct and at least as long as the shorter size; the
            // old one belongs to the caller until here and to this allocator from here on.
            unsafe {
                std::ptr::copy_nonoverlapping(block, new_block, layout.size().min(new_size));
                wipe(block, layout.size());
                System.dealloc(block, layout);
            }
        }
        new_block
    }
}

/// Writes zeros in a way that the compiler keeps.
///
/// # Safety
///
/// `block` is a live block of `size` bytes that nobody else uses.
unsafe fn wipe(block: *mut u8, size: usize) {
    // SAFETY: as this function's caller promises; uninitialised bytes are allowed by the type.
    let bytes = unsafe { std::slice::from_raw_parts_mut(block.cast::<MaybeUninit<u8>>(), size) };
    bytes.zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_moved_under_a_guard_keeps_its_content_and_its_size() {
        let _wiping = Wiping::start();
        let mut text = String::new();
        for round in 0..2000 {
            text.push(char::from(b'a' + (round % 26) as u8));
        }
        text.shrink_to_fit();
        assert_eq!(text.len(), 2000);
        for (round, letter) in text.bytes().enumerate() {
            assert_eq!(letter, b'a' + (round % 26) as u8);
        }
    }

    #[test]
    fn wiping_leaves_zeros() {
        let mut bytes = [0xa5u8; 100];
        // SAFETY: the array is live and borrowed by nobody else.
        unsafe { wipe(bytes.as_mut_ptr(), 99) };
        assert_eq!(bytes[..99], [0; 99]);
        assert_eq!(bytes[99], 0xa5);
    }

    #[test]
    fn guards_nest() {
        assert_eq!(GUARDS.get(), 0);
        let outer = Wiping::start();
        drop(Wiping::start());
        assert_eq!(GUARDS.get(), 1);
        drop(outer);
        assert_eq!(GUARDS.get(), 0);
    }
}
