//! The operations of administrators on a cluster. A request about accounts goes to the owner
//! of each shard, and a question to every server.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use futures::future::{join_all, try_join_all};
use hark_protocol::UserName;

use super::driver::Driver;
use super::operation::Completion;
use super::questions::Answers;
use super::requests::of_request;
use crate::cluster::administer::{Administer, Question, Told};
use crate::cluster::message::{Message, Request};
use crate::cluster::{Now, ServerId, ShardId};
use crate::store::{
    AdminOperation, Completer, InboxInfo, Kick, Peer, PeerInfo, Pending, ShardInfo, StoreUsage,
    Unavailable,
};

impl Driver {
    /// Begins an operation of an administrator.
    pub(super) fn administer(&mut self, operation: AdminOperation, now: Now) {
        match operation {
            AdminOperation::SetSuspended {
                account,
                is_suspended,
                completer,
            } => {
                let name = account.name.clone();
                let request = Administer::SetSuspended {
                    account,
                    is_suspended,
                };
                let completion = Completion::Flag(completer);
                self.submit(&name, Request::Administer(request), completion, now);
            }
            AdminOperation::Inspect(names, completer) => self.inspect(names, completer, now),
            AdminOperation::Usage(completer) => {
                let shards = self.usage_of_shards(now);
                self.run_task(async move {
                    let shards = try_join_all(shards).await;
                    completer.complete(shards.map(|shards| sum(&shards)));
                });
            }
            AdminOperation::Copy(completer) => completer.complete(Ok(None)),
            // Their completers fail when they are dropped; idle accounts of a cluster stay.
            AdminOperation::SetLimits { .. }
            | AdminOperation::Rooms(..)
            | AdminOperation::Room(..)
            | AdminOperation::Messages(..)
            | AdminOperation::Purge(..)
            | AdminOperation::Compact(_)
            | AdminOperation::NoteUse(_) => {}
        }
    }

    /// Closes connections at the other servers.
    pub(super) fn kick_elsewhere(&mut self, kick: Kick, completer: Completer<usize>, now: Now) {
        let question = match kick {
            Kick::User(user) => Question::KickUser(user),
            Kick::Network(network) => Question::KickNetwork(network.into()),
        };
        let answers = self.ask_others(question, now);
        self.run_task(async move {
            completer.complete(answers.await.and_then(|answers| kicked(&answers)));
        });
    }

    /// Looks up inboxes, each at the owner of its shard.
    fn inspect(&mut self, names: Vec<UserName>, completer: Completer<Vec<InboxInfo>>, now: Now) {
        let mut by_shard = BTreeMap::<ShardId, Vec<UserName>>::new();
        for name in &names {
            let shard = self.member.shard_of(name);
            by_shard.entry(shard).or_default().push(name.clone());
        }
        let mut parts = Vec::new();
        for (shard, names) in by_shard {
            let (part, inspected) = Pending::new();
            self.submit_to(
                shard,
                Request::Administer(Administer::Inspect(names)),
                Completion::Inspected(part),
                now,
            );
            parts.push(inspected);
        }
        self.run_task(async move {
            let found = try_join_all(parts).await.map(|parts| {
                let found = parts.into_iter().flatten();
                let mut found: BTreeMap<_, _> =
                    found.map(|inbox| (inbox.name.clone(), inbox)).collect();
                names.iter().filter_map(|name| found.remove(name)).collect()
            });
            completer.complete(found);
        });
    }

    /// Requests the figures of each shard.
    fn usage_of_shards(&mut self, now: Now) -> Vec<Pending<StoreUsage>> {
        let shards = 0..self.streams.len() as ShardId;
        let usage = shards.map(|shard| {
            let (completer, usage) = Pending::new();
            let request = Request::Administer(Administer::Usage);
            self.submit_to(shard, request, Completion::Usage(completer), now);
            usage
        });
        usage.collect()
    }

    /// Describes the shards, also those without an owner.
    pub(super) fn describe_shards(&mut self, completer: Completer<Vec<ShardInfo>>, now: Now) {
        let owners: Vec<_> = self.member.owners(now).collect();
        let usage = self.usage_of_shards(now);
        let streams = self.streams.clone();
        let shards = (0..).zip(owners).zip(usage).zip(streams);
        let shards = shards.map(|(((shard, owner), usage), stream)| async move {
            let (usage, replicas) = tokio::join!(usage, stream.replicas());
            ShardInfo {
                shard,
                owner: owner.map(|owner| owner.to_string()),
                usage: usage.ok(),
                replicas,
            }
        });
        let shards: Vec<_> = shards.collect();
        self.run_task(async move { completer.complete(Ok(join_all(shards).await)) });
    }

    /// Describes the servers, this one first.
    pub(super) fn describe_servers(&mut self, completer: Completer<Vec<PeerInfo>>, now: Now) {
        let mut shards = BTreeMap::<ServerId, Vec<ShardId>>::new();
        for (shard, owner) in (0..).zip(self.member.owners(now)) {
            shards.entry(owner.unwrap_or(self.server)).or_default();
            if let Some(owner) = owner {
                shards.entry(owner).or_default().push(shard);
            }
        }
        let this = self.server;
        let own = self.peer().map(|peer| Told::Server(peer.describe()));
        let answers = self.ask_others(Question::Describe, now);
        self.run_task(async move {
            let described = answers.await.map(|mut answers| {
                answers.insert(0, (this, own));
                let described = answers.into_iter().map(|(server, told)| PeerInfo {
                    id: server.to_string(),
                    is_this: server == this,
                    shards: shards.remove(&server).unwrap_or_default(),
                    description: match told {
                        Some(Told::Server(description)) => Some(description),
                        _ => None,
                    },
                });
                described.collect()
            });
            completer.complete(described);
        });
    }

    /// Asks every other live server.
    fn ask_others(&mut self, question: Question, now: Now) -> Pending<Answers> {
        let this = self.server;
        let others = self.member.servers().filter(|server| *server != this);
        let (completer, answers) = Pending::new();
        let id = self
            .questions
            .ask(question.clone(), others, completer, now.running);
        if let Some(id) = id {
            self.send_question(id, question);
        }
        answers
    }

    /// Asks again the questions without an answer.
    pub(super) fn repeat_questions(&mut self, now: Now) {
        for (id, question) in self.questions.due(now.running) {
            self.send_question(id, question);
        }
    }

    fn send_question(&self, id: u64, question: Question) {
        self.network
            .broadcast(&Message::Ask(self.server, id, question));
    }

    /// Answers a question of another server.
    pub(super) fn answer_question(&self, from: ServerId, id: u64, question: &Question) {
        let Some(peer) = self.peer().filter(|_| from != self.server) else {
            return;
        };
        let told = match question {
            Question::Describe => Told::Server(peer.describe()),
            Question::KickUser(user) => Told::Kicked(peer.kick(&Kick::User(user.clone())) as u64),
            Question::KickNetwork(network) => {
                Told::Kicked(peer.kick(&Kick::Network(network.to_string())) as u64)
            }
        };
        self.network
            .send(from, &Message::Told(self.server, id, told));
    }

    fn peer(&self) -> Option<Arc<dyn Peer>> {
        self.channels.shared.peer.get().and_then(Weak::upgrade)
    }

    /// Submits a request to a shard.
    fn submit_to(&mut self, shard: ShardId, request: Request, completion: Completion, now: Now) {
        let connection = of_request(self.next_request + 1);
        self.submit_as(connection, shard, request, completion, now);
    }

    fn run_task(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push(Box::pin(task));
    }
}

/// Returns the figures of all shards together.
fn sum(shards: &[StoreUsage]) -> StoreUsage {
    shards
        .iter()
        .fold(StoreUsage::default(), |all, of| StoreUsage {
            accounts: all.accounts + of.accounts,
            last_number: all.last_number.max(of.last_number),
            live_bytes: all.live_bytes + of.live_bytes,
            file_bytes: all.file_bytes + of.file_bytes,
            free_bytes: None,
            is_low_on_space: all.is_low_on_space || of.is_low_on_space,
        })
}

/// Returns the number of closed connections.
///
/// # Errors
/// [`Unavailable`] if a server has not answered.
fn kicked(answers: &Answers) -> Result<usize, Unavailable> {
    let counts = answers.iter().map(|(_, told)| match told {
        Some(Told::Kicked(count)) => Ok(*count as usize),
        _ => Err(Unavailable),
    });
    counts.sum()
}
