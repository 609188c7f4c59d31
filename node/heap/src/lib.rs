//! Gives freed memory back to the system, where the allocator would keep it.
//! It is a crate of its own since this is the one call that is not safe Rust.

/// Gives back every page of the heap on which nothing lives. It takes tens of
/// milliseconds after hundreds of MiB, and holds up other threads that allocate
/// meanwhile: for the quiet after a burst. It does nothing but with glibc.
///
/// glibc by itself gives back only the end of the heap, as far as nothing is in
/// use there; and of small pieces that were freed it keeps a few of each size
/// "in use" (the `tcache` of `mallopt(3)`), wherever they are. Those from the
/// height of a burst then hold on to all of it.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "the C library's interface")]
    // SAFETY: malloc_trim(3) may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
