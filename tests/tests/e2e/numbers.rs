//! Sequence numbers are never reused, and are kept by an export.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use hark_protocol::{Request, Sequence};
use hark_tests::{Harkd, HarkdBuilder, Wire, harkd, name, send};

fn on(store: &Path) -> HarkdBuilder {
    Harkd::builder().store(store).numbers_by_clock()
}

/// Sends to bob, and returns the number of the message.
async fn number(server: &Harkd) -> Sequence {
    let mut wire = Wire::connect(server.address()).await;
    wire.ask(Request::Create {
        user: name("bob"),
        password: None,
    })
    .await;
    wire.ok(send("bob", "hello"))
        .await
        .as_stored()
        .expect("a number")
}

#[tokio::test]
async fn server_in_memory_repeats_no_number_after_a_restart() {
    let mut server = on(Path::new("memory:")).start();
    let mut last = Sequence(0);
    for _ in 0..3 {
        let next = number(&server).await;
        assert!(next > last && next.0 < 1 << 53, "{next} after {last}");
        last = next;
        server = server.kill_and_restart();
    }
}

#[tokio::test]
async fn new_store_at_the_same_address_repeats_no_number() {
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut server = on(&first.path().join("store")).start();
    let last = number(&server).await;
    server.kill();
    let server = on(&second.path().join("store")).start();
    assert!(number(&server).await > last);
}

#[tokio::test]
async fn restored_copy_of_a_store_repeats_no_number() {
    let home = tempfile::tempdir().unwrap();
    let (store, copy) = (home.path().join("store"), home.path().join("copy"));
    let mut server = on(&store).start();
    number(&server).await;
    server.signal("TERM");
    assert!(server.wait().success());
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .args([&store, &copy])
        .status()
        .unwrap();
    assert!(copied.success());
    let mut server = server.restart();
    let last = number(&server).await;
    server.kill();
    fs::remove_dir_all(&store).unwrap();
    fs::rename(&copy, &store).unwrap();
    // Restoring a backup takes at least a second.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let server = server.restart();
    assert!(number(&server).await > last);
}

#[tokio::test]
async fn export_and_import_keep_accounts_and_numbers() {
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut server = on(first.path()).start();
    let mut wire = Wire::connect(server.address()).await;
    let password = || Some("correct horse".parse().unwrap());
    wire.ok(Request::Create {
        user: name("ann"),
        password: password(),
    })
    .await;
    wire.create("bob").await;
    wire.ok(Request::Login {
        user: name("ann"),
        password: password(),
    })
    .await;
    for text in ["one", "two, \"quoted\"\n", "three 🦀"] {
        wire.sent("bob", text).await;
    }
    let mut reader = Wire::connect(server.address()).await;
    assert_eq!(reader.receive("bob").await, 3);
    let expected = [
        reader.message().await,
        reader.message().await,
        reader.message().await,
    ];
    reader.ack(expected[0].sequence).await;
    drop((wire, reader));
    server.signal("TERM");
    assert!(server.wait().success());

    let exported = harkd().arg("export").arg(first.path()).output().unwrap();
    assert!(exported.status.success());
    let mut import = harkd();
    import
        .arg("import")
        .arg(second.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut import = import.spawn().unwrap();
    import
        .stdin
        .take()
        .unwrap()
        .write_all(&exported.stdout)
        .unwrap();
    let imported = import.wait_with_output().unwrap();
    let printed = String::from_utf8(imported.stdout).unwrap();
    assert!(
        imported.status.success() && printed.contains("2 accounts and 2 messages"),
        "{printed}"
    );

    let server = on(second.path()).start();
    let mut wire = Wire::connect(server.address()).await;
    wire.ok(Request::Login {
        user: name("ann"),
        password: password(),
    })
    .await;
    assert_eq!(wire.receive("bob").await, 2);
    assert_eq!([wire.message().await, wire.message().await], expected[1..]);
    let number = wire
        .ok(send("bob", "four"))
        .await
        .as_stored()
        .expect("a number");
    assert!(number > expected[2].sequence);
}
