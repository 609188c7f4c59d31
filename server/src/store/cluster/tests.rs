//! The store contract on a real cluster of three nodes, with one replica and with three.
//! Tests that kill nodes or partition the network are in `tests/`.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::record::END;
use super::sweeper::{Due, drop_messages};
use super::*;
use crate::store::contract::{self, Home, Limits, WIDE, contract_suite, name, number, send, text, texts};

const NODES: usize = 3;

/// The nodes of a cluster, which live as long as the process.
pub(crate) fn nodes() -> &'static [String] {
    static NODES: OnceLock<Vec<String>> = OnceLock::new();
    NODES.get_or_init(|| {
        let (send, started) = mpsc::channel();
        // The nodes end with the thread that started them.
        thread::spawn(move || {
            let folder = tempfile::tempdir().unwrap();
            send.send(start(folder.path())).unwrap();
            loop {
                thread::park();
            }
        });
        started.recv().unwrap()
    })
}

fn start(folder: &Path) -> Vec<String> {
    let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/nats-server");
    assert!(binary.exists(), "{} is missing: run ./test once, which installs it", binary.display());
    let ports: Vec<_> = (0..2 * NODES).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<u16> = ports.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    let (clients, routes) = ports.split_at(NODES);
    let all: Vec<_> = routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
    for (node, (client, route)) in clients.iter().zip(routes).enumerate() {
        let file = folder.join(format!("{node}.conf"));
        let settings = format!(
            "server_name: n{node}\nlisten: 127.0.0.1:{client}\n\
             jetstream {{ store_dir: {:?}, sync_interval: always }}\n\
             cluster {{ name: test, listen: 127.0.0.1:{route}, routes: [{}] }}\n",
            folder.join(node.to_string()),
            all.join(", ")
        );
        fs::write(&file, settings).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&binary).arg("-c").arg(&file);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        drop(child);
    }
    clients.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect()
}

/// The runtime of these tests, which lives as long as the process.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    })
}

/// A separate chat on the cluster.
struct Chat {
    name: String,
    replicas: usize,
}

impl Chat {
    fn new(replicas: usize) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self { name: format!("chat{}", COUNT.fetch_add(1, Ordering::Relaxed)), replicas }
    }

    fn config(&self, limits: Limits) -> ClusterConfig {
        ClusterConfig {
            nodes: format!("{}/{}", nodes().join(","), self.name).parse().unwrap(),
            credentials: Credentials::None,
            ca: None,
            monitors: Vec::new(),
            text_bytes_max: 65_000,
            replicas: Some(self.replicas),
            shards: 2,
            accounts_max: limits.accounts,
            sessions_max: limits.sessions,
            queued_messages_max: limits.messages,
            queued_bytes_max: limits.bytes,
        }
    }

    fn open_patiently(&self, limits: Limits) -> ClusterStore {
        let patient_until = Instant::now() + Duration::from_secs(60);
        loop {
            match self.try_open(limits) {
                Ok(store) => return store,
                // The nodes need time to find each other.
                Err(error @ (OpenError::Connect { .. } | OpenError::Stream { .. }))
                    if Instant::now() < patient_until =>
                {
                    eprintln!("not yet: {error}");
                }
                Err(error) => panic!("{error}"),
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn try_open(&self, limits: Limits) -> Result<ClusterStore, OpenError> {
        let config = self.config(limits);
        // Blocking is not allowed on the test's own runtime.
        thread::spawn(move || runtime().block_on(ClusterStore::open(config))).join().unwrap()
    }
}

impl Home for Chat {
    fn open(&self, limits: Limits) -> Arc<dyn Store> {
        Arc::new(self.open_patiently(limits))
    }
}

mod on_one_node {
    use super::*;
    contract_suite!(Chat::new(1));
}

mod on_three_nodes {
    use super::*;
    contract_suite!(Chat::new(3));
}

/// Behavior of a server that has not learned of an account's deletion at another server.
mod ends {
    use std::future::Future;

    use hark_protocol::Code;

    use super::super::lane::PATIENCE;
    use super::*;
    use crate::store::Unavailable;

    const NO_SUCH_USER: Result<Outcome, Unavailable> = Ok(Outcome::Refused(Code::NoSuchUser));

    /// Attempts to act before the periodic update of the accounts.
    const TRIES: usize = 10;

    /// Two servers of a chat. Both know bob and have sent to him.
    struct Pair {
        one: Arc<ClusterStore>,
        two: Arc<ClusterStore>,
        bob: Account,
    }

    impl Pair {
        async fn new() -> Self {
            let chat = Chat::new(3);
            let [one, two] = [(); 2].map(|()| Arc::new(chat.open_patiently(WIDE)));
            let bob = contract::create(&*one, "bob").await;
            for store in [&one, &two] {
                contract::stored(&**store, text("bob", "before")).await;
            }
            Self { one, two, bob }
        }

        /// Returns a lane for bob at the first server.
        fn lane(&self) -> Lane {
            let (_, jobs) = tokio::sync::mpsc::unbounded_channel();
            Lane::new(Arc::clone(&self.one.shared), name("bob"), jobs)
        }

        fn has_heard(&self) -> bool {
            !self.two.shared.directory.is_alive(&self.bob)
        }
    }

    fn deadline() -> tokio::time::Instant {
        tokio::time::Instant::now() + PATIENCE
    }

    /// Repeats a test on new pairs until the second server learns of nothing before `act`
    /// returns; then runs `check`.
    fn unheard<A, C>(act: impl Fn(Arc<Pair>) -> A, check: impl Fn(Arc<Pair>) -> C)
    where
        A: Future<Output = ()>,
        C: Future<Output = ()>,
    {
        runtime().block_on(async {
            for _ in 0..TRIES {
                let pair = Arc::new(Pair::new().await);
                act(Arc::clone(&pair)).await;
                if !pair.has_heard() {
                    return check(pair).await;
                }
            }
            panic!("the second server heard of each of {TRIES} ends");
        });
    }

    #[test]
    fn a_send_after_the_answer_to_a_delete_is_refused() {
        unheard(
            |pair| async move { assert_eq!(pair.lane().try_delete(&pair.bob, deadline()).await, Ok(true)) },
            |pair| async move {
                let sends = [1, 2, 3].map(|id| pair.two.append(send("s", id, "bob", "late")));
                for send in sends {
                    assert_eq!(send.await, NO_SUCH_USER);
                }
            },
        );
    }

    #[test]
    fn a_send_after_a_name_was_made_anew_reaches_the_new_account() {
        unheard(
            |pair| async move {
                assert_eq!(pair.lane().try_delete(&pair.bob, deadline()).await, Ok(true));
                assert_eq!(pair.one.create(&name("bob"), None).await, Ok(Created::Created));
            },
            check_that_the_new_one_is_reached,
        );
    }

    #[test]
    fn so_it_does_where_the_one_who_ended_the_former_died_halfway() {
        unheard(
            |pair| async move {
                assert_eq!(pair.lane().end_account(&pair.bob, deadline()).await, Ok(true));
                assert_eq!(pair.one.create(&name("bob"), None).await, Ok(Created::Created));
            },
            check_that_the_new_one_is_reached,
        );
    }

    async fn check_that_the_new_one_is_reached(pair: Arc<Pair>) {
        let sends = ["one", "two", "three"].map(|content| pair.two.append(text("bob", content)));
        for send in sends {
            number(send.await);
        }
        let anew = pair.one.account(&name("bob")).await.unwrap().unwrap().account;
        assert_ne!(anew, pair.bob);
        assert_eq!(texts(&*pair.one, &anew).await, ["one", "two", "three"]);
    }

    #[test]
    fn who_deletes_again_what_was_ended_halfway_ends_the_rest() {
        unheard(
            |pair| async move {
                assert_eq!(pair.lane().end_account(&pair.bob, deadline()).await, Ok(true));
                assert_eq!(pair.one.delete(&pair.bob).await, Ok(false));
            },
            |pair| async move { assert_eq!(pair.two.append(text("bob", "late")).await, NO_SUCH_USER) },
        );
    }

    /// The send skipped the update while the former account was known to exist, and the
    /// lane took it when the end was known but the new account was not.
    #[test]
    fn that_there_is_no_such_user_is_not_said_by_what_was_known_before_the_send() {
        runtime().block_on(async {
            let pair = Pair::new().await;
            assert_eq!(pair.lane().try_delete(&pair.bob, deadline()).await, Ok(true));
            assert!(pair.two.account(&name("bob")).await.unwrap().is_none());
            assert_eq!(pair.one.create(&name("bob"), None).await, Ok(Created::Created));
            let (completer, outcome) = Pending::new();
            pair.two.shared.append(text("bob", "new"), completer, deadline());
            number(outcome.await);
        });
    }

    #[test]
    fn what_is_dropped_of_an_inbox_is_not_its_end() {
        unheard(
            |pair| async move {
                assert_eq!(pair.lane().try_delete(&pair.bob, deadline()).await, Ok(true));
                drop_whole(&pair.one, &pair.bob).await;
            },
            |pair| async move {
                assert_eq!(pair.two.append(text("bob", "late")).await, NO_SUCH_USER);
                let (stream, subject) = (
                    pair.one.shared.names.inbox_stream_of(&pair.bob.name),
                    pair.one.shared.names.inbox(&pair.bob),
                );
                let left = pair.one.shared.engine.page(&stream, &subject, 1, 10, 10_000).await.unwrap();
                assert_eq!(left.found.iter().map(|found| &*found.payload).collect::<Vec<_>>(), [END]);
            },
        );
    }

    #[test]
    fn an_account_that_is_there_is_not_dropped() {
        runtime().block_on(async {
            let pair = Pair::new().await;
            drop_whole(&pair.one, &pair.bob).await;
            assert_eq!(texts(&*pair.two, &pair.bob).await, ["before", "before"]);
        });
    }

    async fn drop_whole(store: &ClusterStore, account: &Account) {
        let due = Due { at: tokio::time::Instant::now(), below: u64::MAX, whole: true };
        drop_messages(&store.shared, account, due).await.unwrap();
    }

    #[test]
    fn an_end_is_no_message_to_who_reads() {
        runtime().block_on(async {
            let pair = Pair::new().await;
            pair.one.shared.end_inbox(&pair.bob).await.unwrap();
            assert_eq!(texts(&*pair.two, &pair.bob).await, ["before", "before"]);
        });
    }

    #[test]
    fn every_server_is_told_of_an_end() {
        const ROUNDS: u32 = 10;
        runtime().block_on(async {
            let Pair { one, two, mut bob, .. } = Pair::new().await;
            let began = Instant::now();
            for _ in 0..ROUNDS {
                assert_eq!(one.delete(&bob).await, Ok(true));
                while two.shared.directory.is_alive(&bob) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                bob = contract::create(&*one, "bob").await;
                contract::stored(&*two, text("bob", "it is known there")).await;
            }
            // The periodic update takes two seconds.
            assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
        });
    }
}

/// Concurrent publications to one stream.
mod together {
    use std::future::Future;

    use bytes::Bytes;
    use futures::future::join_all;

    use super::super::engine::{Found, MessageId, random_id};
    use super::*;

    /// A store, and inboxes in one of its streams.
    struct Inboxes {
        store: ClusterStore,
        accounts: Vec<Account>,
    }

    impl Inboxes {
        fn new(replicas: usize) -> Self {
            let store = Chat::new(replicas).open_patiently(WIDE);
            let names = (0..20).map(|n| name(&format!("user{n}")));
            let names = names.filter(|name| store.shared.names.shard(name) == 0);
            let accounts = names.map(|name| Account { name, incarnation: 1 }).take(4).collect();
            Self { store, accounts }
        }

        /// Publishes the groups: the first goes alone, and the others meanwhile.
        async fn publish(&self, groups: [(u64, Vec<MessageId>); 4]) -> Vec<Result<Stored, NotStored>> {
            join_all(groups.into_iter().zip(&self.accounts).map(|(group, account)| self.one(account, group)))
                .await
        }

        fn one(
            &self,
            account: &Account,
            (expected, ids): (u64, Vec<MessageId>),
        ) -> impl Future<Output = Result<Stored, NotStored>> {
            let messages = ids.into_iter().map(|id| (id, Bytes::from_static(b"text"))).collect();
            let group = Group { subject: self.store.shared.names.inbox(account), expected, messages };
            self.store.shared.publish_to_inbox(&account.name, group)
        }

        /// Returns the sequence of the last message of each inbox.
        async fn lasts(&self) -> Vec<u64> {
            let shared = &self.store.shared;
            let last = |account: &Account| {
                let (stream, subject) =
                    (shared.names.inbox_stream_of(&account.name), shared.names.inbox(account));
                async move {
                    shared
                        .engine
                        .last(&stream, &subject)
                        .await
                        .unwrap()
                        .map_or(0, |Found { sequence, .. }| sequence)
                }
            };
            join_all(self.accounts.iter().map(last)).await
        }
    }

    fn fresh<const N: usize>(counts: [usize; N]) -> [Vec<MessageId>; N] {
        counts.map(|count| (0..count).map(|_| random_id()).collect())
    }

    fn new(sequence: u64) -> Result<Stored, NotStored> {
        Ok(Stored { sequence, duplicate: false })
    }

    fn each_is_decided_by_itself(replicas: usize) {
        let inboxes = Inboxes::new(replicas);
        runtime().block_on(async {
            let [a, b, c, d] = fresh([1, 1, 3, 2]);
            let repeated = b.clone();
            let stored = inboxes.publish([(0, a), (0, b), (0, c), (0, d)]).await;
            assert_eq!(stored, [new(1), new(2), new(5), new(7)]);
            assert_eq!(inboxes.lasts().await, [1, 2, 5, 7]);

            // One group has a wrong condition: the others are stored.
            let [a, b, c, d] = fresh([1, 2, 1, 1]);
            let stored = inboxes.publish([(1, a), (2, b), (4, c), (7, d)]).await;
            assert_eq!(stored[2], Err(NotStored::Moved));
            let lasts = inboxes.lasts().await;
            let numbers: Vec<_> =
                stored.iter().map(|stored| stored.map_or(5, |stored| stored.sequence)).collect();
            assert_eq!(lasts, numbers);
            assert!(lasts.iter().all(|last| *last <= 11), "{lasts:?}");

            // One group is a duplicate.
            let [a, _, c, d] = fresh([1, 0, 1, 1]);
            let groups = [(lasts[0], a), (lasts[1], repeated), (lasts[2], c), (lasts[3], d)];
            let stored = inboxes.publish(groups).await;
            assert_eq!(stored[1], Ok(Stored { sequence: 2, duplicate: true }));
            let after = inboxes.lasts().await;
            assert_eq!(after[1], lasts[1], "it is not stored again");
            for of in [0, 2, 3] {
                assert_eq!(stored[of], new(after[of]));
            }
        });
    }

    #[test]
    fn each_is_decided_by_itself_on_one_node() {
        each_is_decided_by_itself(1);
    }

    #[test]
    fn each_is_decided_by_itself_on_three_nodes() {
        each_is_decided_by_itself(3);
    }
}
