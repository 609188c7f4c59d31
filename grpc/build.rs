//! Compiles the services' definitions, by a compiler written in Rust: no
//! `protoc` is needed.

use std::path::PathBuf;
use std::{env, error, fs};

use prost::Message;

/// Where the definitions are, and what reads `import` paths.
const FOLDER: &str = "../server/proto";

/// The definitions.
const FILES: [&str; 2] = ["hark/v1/chat.proto", "helloworld/chat.proto"];

/// Messages with a password: their `Debug` is written by hand and hides it.
const SECRET: [&str; 5] = [
    "hark.v1.Credentials",
    "hark.v1.ConnectRequest",
    "hark.v1.CreateRequest",
    "hark.v1.PasswordRequest",
    "hark.v1.DeleteRequest",
];

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo::rerun-if-changed={FOLDER}");
    let descriptors = protox::compile(FILES, [FOLDER])?;
    let to = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(to.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().build_transport(false).skip_debug(SECRET).compile_fds(descriptors)?;
    Ok(())
}
