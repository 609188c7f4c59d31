//! `harkd`, the Hark chat server.

fn main() {}
