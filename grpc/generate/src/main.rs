//! Generates `grpc/src/generated/` from `grpc/proto/` with a protobuf
//! compiler written in Rust. The result is committed, so that a build needs
//! neither this crate nor `protoc`; a test compares the two.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use prost::Message as _;

/// Paths of the definitions in `grpc/proto`.
const DEFINITIONS: [&str; 3] = [
    "hark/v1/admin.proto",
    "hark/v1/chat.proto",
    "helloworld/chat.proto",
];

/// Messages with a password or a token. Their handwritten `Debug` hides it.
const SECRET: [&str; 9] = [
    "hark.v1.AttachRequest",
    "hark.v1.Credentials",
    "hark.v1.ConnectRequest",
    "hark.v1.CreateRequest",
    "hark.v1.PasswordRequest",
    "hark.v1.DeleteRequest",
    "hark.v1.TokenReply",
    "hark.v1.Ok",
    "hark.v1.SetUserPasswordRequest",
];

fn main() -> anyhow::Result<()> {
    generate(&committed())
}

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/generated")
}

/// Generates all files in a folder.
fn generate(folder: &Path) -> anyhow::Result<()> {
    let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let descriptors = protox::compile(DEFINITIONS, [&protos])?;
    fs::write(folder.join("descriptors.bin"), descriptors.encode_to_vec())
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    tonic_prost_build::configure()
        .build_transport(false)
        .skip_debug(SECRET)
        .out_dir(folder)
        .compile_fds(descriptors)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GENERATED: [&str; 3] = ["hark.v1.rs", "helloworld.rs", "descriptors.bin"];

    #[test]
    fn committed_code_is_that_of_the_definitions() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        generate(folder.path())?;
        for file in GENERATED {
            let (new, old) = (
                fs::read(folder.path().join(file))?,
                fs::read(committed().join(file))?,
            );
            anyhow::ensure!(
                new == old,
                "{file} is stale: run `cargo run -p hark-grpc-generate`"
            );
        }
        anyhow::ensure!(
            fs::read_dir(folder.path())?.count() == GENERATED.len(),
            "GENERATED lacks a file"
        );
        Ok(())
    }
}
