//! Aligned buffers for bytes on their way to or from the file.
//!
//! Buffers come in a few sizes, are used again and again, and are bounded in total: a pool that has
//! reached its bound gives none out until one comes back, so that a guest with a long queue of
//! large requests cannot make the process grow.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// The alignment of every buffer, in bytes: enough for direct I/O on every block size in use.
pub const BUFFER_ALIGN: usize = 4096;

/// The largest buffer, in bytes. Longer transfers go in pieces of this size.
pub const BUFFER_BYTES_MAX: usize = 256 * 1024;

/// An aligned piece of memory from a [`BufferPool`].
#[derive(Debug)]
pub struct Buffer {
    base: NonNull<u8>,
    class: usize,
}

// SAFETY: a buffer owns its memory; nothing else points to it.
unsafe impl Send for Buffer {}

impl Buffer {
    /// The first byte.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The first byte. The memory is plain bytes: writing through the pointer is up to whoever knows
    /// that no operation uses the buffer.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// How many bytes it holds.
    pub fn capacity(&self) -> usize {
        CLASS_BYTES[self.class]
    }

    fn new(class: usize) -> Self {
        let layout = layout(class);
        // Zeroed, so that it may be seen as a slice whatever was put into it.
        // SAFETY: the layout has a size above zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let base = NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout));
        Self { base, class }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the memory came from `alloc_zeroed` with this layout and is freed once.
        unsafe { dealloc(self.base.as_ptr(), layout(self.class)) };
    }
}

/// Buffers of one thread.
#[derive(Debug)]
pub struct BufferPool {
    free: [Vec<Buffer>; CLASS_BYTES.len()],
    bytes_allocated: usize,
    bytes_max: usize,
}

impl BufferPool {
    /// A pool that never holds more than `bytes_max`, which is at least one largest buffer.
    pub fn new(bytes_max: usize) -> Self {
        assert!(bytes_max >= BUFFER_BYTES_MAX);
        Self { free: Default::default(), bytes_allocated: 0, bytes_max }
    }

    /// A buffer of at least `len` bytes, at most [`BUFFER_BYTES_MAX`]; `None` while the bound is
    /// reached. The content is whatever the last user left.
    pub fn take(&mut self, len: usize) -> Option<Buffer> {
        let class = CLASS_BYTES.iter().position(|&bytes| bytes >= len)?;
        if let Some(buffer) = self.free[class].pop() {
            return Some(buffer);
        }
        while self.bytes_allocated + CLASS_BYTES[class] > self.bytes_max {
            let idle = self.free.iter_mut().find_map(Vec::pop)?;
            self.bytes_allocated -= idle.capacity();
        }
        self.bytes_allocated += CLASS_BYTES[class];
        Some(Buffer::new(class))
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: Buffer) {
        if self.bytes_allocated > self.bytes_max {
            self.bytes_allocated -= buffer.capacity();
        } else {
            self.free[buffer.class].push(buffer);
        }
    }

    /// Holds at most so many bytes from now on, at least one largest buffer, and frees idle buffers for that.
    /// What is in use beyond the new bound stays until it is given back.
    pub fn set_bytes_max(&mut self, bytes_max: usize) {
        assert!(bytes_max >= BUFFER_BYTES_MAX);
        self.bytes_max = bytes_max;
        while self.bytes_allocated > bytes_max {
            let Some(idle) = self.free.iter_mut().find_map(Vec::pop) else { return };
            self.bytes_allocated -= idle.capacity();
        }
    }
}

/// The bytes that a buffer for `len` bytes takes, at most [`BUFFER_BYTES_MAX`].
pub fn buffer_bytes(len: usize) -> usize {
    CLASS_BYTES.into_iter().find(|&bytes| bytes >= len).unwrap_or(BUFFER_BYTES_MAX)
}

fn layout(class: usize) -> Layout {
    Layout::from_size_align(CLASS_BYTES[class], BUFFER_ALIGN).expect("sizes and alignment are constants that fit")
}

const CLASS_BYTES: [usize; 4] = [4096, 16 * 1024, 64 * 1024, BUFFER_BYTES_MAX];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_used_again() {
        let mut pool = BufferPool::new(1 << 20);
        let mut buffer = pool.take(5000).unwrap();
        assert_eq!(buffer.capacity(), 16 * 1024);
        assert_eq!(buffer.as_mut_ptr().addr() % BUFFER_ALIGN, 0);
        let base = buffer.as_mut_ptr();
        pool.give(buffer);
        assert_eq!(pool.take(16 * 1024).unwrap().as_mut_ptr(), base);
    }

    #[test]
    fn the_bound_holds_and_idle_buffers_make_room_for_other_sizes() {
        let mut pool = BufferPool::new(BUFFER_BYTES_MAX);
        let small: Vec<_> = (0..64).map(|_| pool.take(4096).unwrap()).collect();
        assert!(pool.take(1).is_none());
        small.into_iter().for_each(|buffer| pool.give(buffer));
        let large = pool.take(BUFFER_BYTES_MAX).unwrap();
        assert!(pool.take(1).is_none());
        pool.give(large);
        assert!(pool.take(1).is_some());
        assert!(pool.take(BUFFER_BYTES_MAX + 1).is_none());
    }

    #[test]
    fn a_lower_bound_holds_as_soon_as_buffers_come_back() {
        let mut pool = BufferPool::new(2 * BUFFER_BYTES_MAX);
        let [first, second] = [(); 2].map(|()| pool.take(BUFFER_BYTES_MAX).unwrap());
        pool.give(first);
        pool.set_bytes_max(BUFFER_BYTES_MAX);
        assert!(pool.take(1).is_none(), "the one in use is all that there may be");
        assert_eq!(pool.bytes_allocated, BUFFER_BYTES_MAX);
        pool.give(second);
        assert!(pool.take(BUFFER_BYTES_MAX).is_some());
        assert!(pool.take(1).is_none());
        pool.set_bytes_max(BUFFER_BYTES_MAX + 4096);
        assert_eq!(pool.take(1).map(|buffer| buffer.capacity()), Some(buffer_bytes(1)));
    }
}
