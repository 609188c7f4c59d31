//! What the simulated cluster promises to a test.

mod bounds;
mod check;
mod crash;
mod determinism;
mod harness;
mod journal;
mod network;
mod programs;
mod services;
