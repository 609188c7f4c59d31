//! The gRPC front, with a client in the same process.

mod bidi;
mod connect;
mod failing;
mod health;
mod hostile;
mod legacy;
mod links;
mod raw;
mod reflection;
mod rooms;
mod server;
mod unary;
