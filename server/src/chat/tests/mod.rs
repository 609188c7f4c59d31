//! Tests of connections over a store.

mod devices;
mod model;
mod rooms;
