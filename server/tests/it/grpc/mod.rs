//! The gRPC front, asked by a client of this process.

mod bidi;
mod connect;
mod failing;
mod health;
mod hostile;
mod links;
mod old;
mod raw;
mod reflection;
mod server;
mod unary;
