//! End-to-end tests with the real binaries, in a single program to save
//! linking.
//!
//! A test has its own servers, or its own chat on the NATS cluster that all
//! tests of this process share. A test that needs a network of its own runs
//! itself again in a process of its own ([`hark_tests::FarMachine`]).
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod accounts;
mod administration;
mod classic;
mod cluster;
mod cluster_administration;
mod cluster_crash;
mod cluster_start;
mod configuration;
mod crash;
mod damage;
mod examples;
mod failover;
mod faults;
mod floods;
mod grpc_client;
mod grpc_memory;
mod http;
mod http2;
mod http_devices;
mod http_hostile;
mod lifecycle;
mod links;
mod logs;
mod moving;
mod nats;
mod numbers;
mod operating;
mod page;
mod password_memory;
mod receiving;
mod rooms;
mod secrets;
mod sending;
mod slow_peers;
mod soak;
mod stopping;
mod tls;
mod tokens;
mod transcript;
mod unsafe_code;
mod vanishing;
mod watch_logs;
mod websocket;
