//! Streams: the real binary byte for byte, services and clients on virtual
//! time, and frames.

mod clients;
mod frames;
mod net;
mod samples;
mod served;
