//! Memory of the server for password hashing.

use hark_protocol::Request;
use hark_tests::{Harkd, Wire, name};

const MIB: u64 = 1024 * 1024;

/// Memory for hashing one password: 19 MiB and some overhead.
const HASHING_BYTES: u64 = 20 * MIB;

/// Allowed growth of the server's memory for the connections, in bytes.
const GROWTH_MAX: u64 = 64 * MIB;

#[tokio::test]
async fn memory_for_password_hashing_is_bounded() {
    let server = Harkd::start();
    let before = server.resident_bytes();
    let mut wires = Vec::new();
    for n in 0..40 {
        let user = name(&format!("user{n}"));
        let secret = || "secret".parse().unwrap();
        let mut wire = Wire::connect(server.address()).await;
        wire.write(
            1,
            Request::Create {
                user: user.clone(),
                password: None,
            },
        )
        .await;
        // A read of the store, which also uses a blocking thread.
        wire.write(
            2,
            Request::Connect {
                user: user.clone(),
                password: None,
            },
        )
        .await;
        wire.write(
            3,
            Request::Password {
                user: user.clone(),
                old: None,
                new: secret(),
            },
        )
        .await;
        wire.write(
            4,
            Request::Login {
                user,
                password: Some(secret()),
            },
        )
        .await;
        wires.push(wire);
    }
    for wire in &mut wires {
        wire.reply_to(4).await;
    }
    let growth = server.resident_bytes().saturating_sub(before);
    println!("{} MiB more for 80 hashes", growth / MIB);
    let at_once = std::thread::available_parallelism()
        .map_or(1, |processors| processors.get() as u64 / 2)
        .max(1);
    assert!(
        growth < GROWTH_MAX + at_once * HASHING_BYTES,
        "{growth} bytes"
    );
}
