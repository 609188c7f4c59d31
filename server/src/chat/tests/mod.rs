//! Tests of connections over a store.

mod devices;
mod hostile;
mod model;
mod rooms;
mod tokens;
