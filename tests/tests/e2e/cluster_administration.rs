//! `harkd admin` at one server of a cluster: accounts belong to the owners of their shards,
//! and connections to any server.

use std::path::PathBuf;

use hark_protocol::{Code, Request};
use hark_tests::{Harkd, Nats, StoreLocation, Wire, harkd, name};
use serde_json::Value;
use tempfile::TempDir;

/// Two servers of one chat.
struct Cluster {
    servers: [Harkd; 2],
    sockets: TempDir,
}

impl Cluster {
    fn start() -> Self {
        let sockets = tempfile::tempdir().unwrap();
        let location = StoreLocation::on(Nats::shared());
        let servers = ["0", "1"].map(|server| {
            let socket = sockets.path().join(server);
            let builder = Harkd::builder().store(location.clone());
            builder
                .arg(format!("--admin-socket={}", socket.display()))
                .start()
        });
        Self { servers, sockets }
    }

    fn socket(&self, server: usize) -> PathBuf {
        self.sockets.path().join(server.to_string())
    }

    async fn wire(&self, server: usize) -> Wire {
        Wire::connect(self.servers[server].address()).await
    }

    /// Runs `harkd admin --json` at a server, and returns the objects that it prints.
    #[track_caller]
    fn answers(&self, server: usize, arguments: &[&str]) -> Vec<Value> {
        let mut command = harkd();
        command
            .args(["admin", "--json", "--admin-socket"])
            .arg(self.socket(server))
            .args(arguments)
            .env("HARKD_PASSWORD", "new secret");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[track_caller]
    fn answer(&self, server: usize, arguments: &[&str]) -> Value {
        let mut all = self.answers(server, arguments);
        assert_eq!(all.len(), 1, "{arguments:?}: {all:?}");
        all.remove(0)
    }
}

fn login(user: &str, password: Option<&str>) -> Request {
    Request::Login {
        user: name(user),
        password: password.map(|password| password.parse().unwrap()),
    }
}

#[tokio::test]
async fn each_server_shows_the_users_of_all_shards() {
    let cluster = Cluster::start();
    let users = ["amy", "bob", "cid", "dan", "eve", "fay", "gus", "hal"];
    let mut wire = cluster.wire(0).await;
    for user in users {
        wire.create(user).await;
        wire.sent(user, "hello").await;
    }
    let mut bob = cluster.wire(1).await;
    bob.receive("bob").await;
    for server in [0, 1] {
        let listed = cluster.answers(server, &["users"]);
        let names: Vec<_> = listed.iter().map(|user| user["name"].clone()).collect();
        assert_eq!(names, users);
        let receiving = listed.iter().filter(|user| user["receiving"] == true);
        assert_eq!(receiving.count(), 1);
        let bob = cluster.answer(server, &["show", "bob"]);
        assert_eq!(
            (&bob["waiting"], &bob["receiving"]),
            (&1.into(), &true.into())
        );
        assert_eq!(cluster.answer(server, &["stats"])["accounts"], 8);
    }
}

#[tokio::test]
async fn kick_closes_connections_at_every_server() {
    let cluster = Cluster::start();
    let mut here = cluster.wire(0).await;
    here.create("bob").await;
    here.ok(login("bob", None)).await;
    let mut there = cluster.wire(1).await;
    there.receive("bob").await;
    assert_eq!(cluster.answer(0, &["kick", "bob"])["closed"], 2);
    while there.next().await.is_some() {}
    assert_eq!(here.next().await, None);
}

#[tokio::test]
async fn suspension_and_password_hold_at_every_server() {
    let cluster = Cluster::start();
    let mut wire = cluster.wire(0).await;
    for user in ["amy", "bob"] {
        wire.create(user).await;
    }
    let mut bob = cluster.wire(1).await;
    bob.receive("bob").await;
    cluster.answer(0, &["suspend", "bob"]);
    while bob.next().await.is_some() {}
    for server in [0, 1] {
        let mut wire = cluster.wire(server).await;
        wire.refused(login("bob", None), Code::Denied).await;
        assert_eq!(cluster.answer(server, &["show", "bob"])["suspended"], true);
    }
    wire.sent("bob", "for later").await;
    cluster.answer(1, &["resume", "bob"]);
    assert_eq!(cluster.wire(0).await.receive("bob").await, 1);
    cluster.answer(1, &["set-password", "amy"]);
    let mut wire = cluster.wire(0).await;
    wire.refused(login("amy", Some("guess")), Code::Denied)
        .await;
    wire.ok(login("amy", Some("new secret"))).await;
}
