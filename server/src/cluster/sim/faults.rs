//! [`Scenario`]: the faults of a run, and their times.

use std::ops::Range;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::clients::Habit;
use super::world::{HOSTS, SHARDS};

/// A fault, or its end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// A host stands still, possibly with its clocks.
    Pause {
        host: usize,
        stops_clock: bool,
    },
    Resume(usize),
    Crash(usize),
    /// An orderly stop: the server gives up its shards.
    Leave(usize),
    Start(usize),
    /// Two hosts cannot communicate.
    Cut(usize, usize),
    /// Messages of the first host do not reach the second one.
    Mute(usize, usize),
    /// A host and the streams cannot communicate.
    CutLog(usize),
    /// All connections are restored.
    Heal,
    /// The loss rate of messages between hosts and answers of streams, per 1,000.
    Loss(u32),
    /// The rate of append requests that arrive seconds late, per 1,000.
    Late(u32),
    /// A host receives nothing, except from its clients.
    Deaf(usize),
    /// Answers of the streams reach a deaf host again.
    HearStreams,
    /// The leader of a stream is isolated and applies nothing.
    Stall(usize),
    /// The leader of a stream is lost.
    LoseLeader(usize),
    /// A stream has a leader, which does not count proposals of the former one.
    Elect(usize),
    /// The leader has caught up.
    Settle(usize),
    /// Reads of a stream are served by a node that is this many messages behind.
    Stale(usize, u64),
    /// The storage of a stream has too little free space, or enough again.
    LowSpace(usize, bool),
}

/// The faults of a run.
#[derive(Debug)]
pub(super) struct Scenario {
    pub(super) faults: Vec<(Duration, Fault)>,
    /// When clients begin nothing new any more.
    pub(super) rest_at: Duration,
    /// The time at which the faults end.
    pub(super) calm_at: Duration,
    /// Sends of each sender.
    pub(super) sends: u32,
    /// Entries of a stream at which a snapshot is due.
    pub(super) tail_entries_max: u64,
    pub(super) changers: [Habit; 3],
    /// Hosts are meant by their roles: see [`Self::cast`].
    pub(super) has_roles: bool,
    /// Maximum claims of a shard.
    pub(super) claims_max: usize,
}

/// The number of kinds of random scenarios. The seed modulo this selects the kind; the
/// kinds without a name add no special fault.
pub(super) const KINDS: u64 = 8;
const CUT_SERVER: u64 = 1;
pub(super) const DEAF_OWNER: u64 = 3;
pub(super) const LOSSY_END: u64 = 5;
pub(super) const CLAIM_IN_DOUBT: u64 = 7;

impl Scenario {
    /// Returns a random scenario of this kind.
    pub(super) fn of_kind(kind: u64) -> impl Fn(u64) -> Self {
        move |seed| Self::of(KINDS * seed + kind)
    }

    /// Returns a random scenario.
    pub(super) fn of(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed ^ 0x5eed);
        let calm_at = Duration::from_millis(random.random_range(5_000..12_000));
        let mut scenario = Self {
            faults: Vec::new(),
            rest_at: calm_at,
            calm_at,
            sends: 10,
            tail_entries_max: 12,
            changers: [Habit::Any; 3],
            has_roles: false,
            claims_max: usize::MAX,
        };
        match seed % KINDS {
            CLAIM_IN_DOUBT => scenario.add_claim_in_doubt(&mut random),
            CUT_SERVER => scenario.add_cut_server(&mut random),
            DEAF_OWNER => scenario.add_deaf_owner(&mut random),
            LOSSY_END => scenario.add_lossy_end(&mut random),
            _ => {}
        }
        for _ in 0..random.random_range(1..7) {
            scenario.add(&mut random);
        }
        scenario.faults.sort_by_key(|(at, _)| *at);
        scenario
    }

    /// Returns a scenario in which a host and its clocks stand still for longer than
    /// outcomes are remembered.
    pub(super) fn long_pause(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed ^ 0x9a05e);
        let begins = Duration::from_millis(random.random_range(3_000..8_000));
        let ends = begins + Duration::from_secs(random.random_range(620..720));
        let host = random.random_range(0..HOSTS);
        let mut faults = vec![
            (
                begins,
                Fault::Pause {
                    host,
                    stops_clock: true,
                },
            ),
            (ends, Fault::Resume(host)),
        ];
        if random.random_bool(0.3) {
            let other = (host + 1) % HOSTS;
            let crashes = ends
                .checked_sub(Duration::from_secs(random.random_range(1..60)))
                .unwrap();
            faults.insert(1, (crashes, Fault::Crash(other)));
        }
        Self {
            faults,
            rest_at: begins + Duration::from_secs(12),
            calm_at: ends,
            sends: 10,
            tail_entries_max: 12,
            changers: [Habit::Any; 3],
            has_roles: false,
            claims_max: usize::MAX,
        }
    }

    /// Returns a scenario in which an owner loses the streams and the connection to the next
    /// one, of which a third server hears nothing: the next one deletes an account, as which
    /// that one acts. Some stand still with their clocks for less than the longest silence
    /// of a flow.
    pub(super) fn lapse(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed ^ 0x1a95e);
        let mut ms = |range: Range<u64>| Duration::from_millis(random.random_range(range));
        let (begins, lasts, deletes) = (ms(4000..6000), ms(42_000..50_000), ms(0..3000));
        let pauses = [0, 1].map(|_| (ms(0..26_000), ms(300..7500)));
        let [owner, acting, next] = [0, 1, 2];
        let mut faults = vec![
            (begins, Fault::Cut(owner, next)),
            (begins, Fault::Mute(next, acting)),
            (begins, Fault::CutLog(owner)),
            (begins + lasts, Fault::Heal),
        ];
        for ((at, lasts), host) in pauses.into_iter().zip([owner, acting]) {
            if random.random_bool(0.5) {
                let (stops_clock, at) = (true, begins + at);
                faults.push((at, Fault::Pause { host, stops_clock }));
                faults.push((at + lasts, Fault::Resume(host)));
            }
        }
        faults.sort_by_key(|(at, _)| *at);
        let act = Habit::Act(Some(acting), begins + lasts);
        Self {
            faults,
            rest_at: begins - Duration::from_secs(1),
            calm_at: begins + lasts,
            sends: 3,
            tail_entries_max: 12,
            changers: [act, act, Habit::Delete(next, begins + deletes)],
            has_roles: true,
            claims_max: usize::MAX,
        }
    }

    /// Gives each role, by its index, to a host.
    pub(super) fn cast(&mut self, hosts: [usize; HOSTS]) {
        for (_, fault) in &mut self.faults {
            match fault {
                Fault::Pause { host, .. } | Fault::Resume(host) | Fault::CutLog(host) => {
                    *host = hosts[*host];
                }
                Fault::Cut(one, two) | Fault::Mute(one, two) => {
                    (*one, *two) = (hosts[*one], hosts[*two]);
                }
                Fault::Heal => {}
                other => unreachable!("{other:?} has no role"),
            }
        }
        for habit in &mut self.changers {
            if let Habit::Act(Some(host), _) | Habit::Delete(host, _) = habit {
                *host = hosts[*host];
            }
        }
    }

    /// Returns a scenario in which servers join under load and loss, and shards are handed
    /// over to them.
    pub(super) fn join(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed ^ 0x10_14);
        let host = random.random_range(0..HOSTS);
        let other = (host + 1) % HOSTS;
        let loss = random.random_range(5..100);
        let mut ms = |range: Range<u64>| Duration::from_millis(random.random_range(range));
        let starts = ms(1000..2000);
        let leaves = starts + ms(9000..12_000);
        let starts_again = leaves + ms(500..1500);
        let calm_at = starts_again + ms(9000..12_000);
        Self {
            faults: vec![
                (Duration::ZERO, Fault::Crash(host)),
                (Duration::ZERO, Fault::Loss(loss)),
                (starts, Fault::Start(host)),
                (leaves, Fault::Leave(other)),
                (starts_again, Fault::Start(other)),
            ],
            rest_at: calm_at,
            calm_at,
            sends: 40,
            tail_entries_max: 12,
            changers: [Habit::Act(None, calm_at); 3],
            has_roles: false,
            claims_max: 10,
        }
    }

    /// Adds a host that receives nothing, and later reads its own stale state.
    fn add_deaf_owner(&mut self, random: &mut SmallRng) {
        let [begins, lasts] =
            [1000..2000, 8000..14_000].map(|ms| Duration::from_millis(random.random_range(ms)));
        let host = random.random_range(0..HOSTS);
        self.faults.push((begins, Fault::Deaf(host)));
        // Without its heartbeats, the others do not wait for its append.
        for step in 1..HOSTS {
            self.faults
                .push((begins, Fault::Cut(host, (host + step) % HOSTS)));
        }
        self.faults.push((begins + lasts, Fault::HearStreams));
        let heals = begins + lasts + Duration::from_millis(random.random_range(0..2000));
        self.faults.push((heals, Fault::Heal));
        self.calm_at = self.calm_at.max(heals + Duration::from_millis(500));
        self.rest_at = self.calm_at;
        // A purge would reveal to the owner that it is deposed.
        self.tail_entries_max = 1000;
    }

    /// Adds a crash of a server while the two others cannot hear each other: one of them
    /// takes over shards of which the other one does not learn.
    fn add_cut_server(&mut self, random: &mut SmallRng) {
        let host = random.random_range(0..HOSTS);
        let crashes = Duration::from_millis(random.random_range(2500..5000));
        let cut = crashes - Duration::from_millis(random.random_range(0..1000));
        let heals = crashes + Duration::from_millis(random.random_range(6000..12_000));
        let (one, two) = ((host + 1) % HOSTS, (host + 2) % HOSTS);
        self.faults.extend([
            (cut, Fault::Cut(one, two)),
            (crashes, Fault::Crash(host)),
            (heals, Fault::Heal),
            (heals, Fault::Start(host)),
        ]);
        self.calm_at = self.calm_at.max(heals + Duration::from_millis(500));
        self.rest_at = self.calm_at;
    }

    /// Adds losses during the last commands.
    fn add_lossy_end(&mut self, random: &mut SmallRng) {
        self.rest_at -= Duration::from_millis(random.random_range(500..3000));
        let begins = self.rest_at - Duration::from_millis(random.random_range(0..2000));
        self.faults
            .push((begins, Fault::Loss(random.random_range(50..500))));
    }

    /// Adds a claim that was proposed by a lost leader, while the former owner resumes
    /// after standing still.
    fn add_claim_in_doubt(&mut self, random: &mut SmallRng) {
        let mut at = Duration::from_millis(random.random_range(1000..2500));
        let (host, shard) = (
            random.random_range(0..HOSTS),
            random.random_range(0..SHARDS),
        );
        self.faults.push((
            at,
            Fault::Pause {
                host,
                stops_clock: false,
            },
        ));
        for (fault, after_ms) in [
            (Fault::Stall(shard), 1200..1500),
            (Fault::LoseLeader(shard), 600..1600),
            (Fault::Elect(shard), 10..100),
            (Fault::Resume(host), 0..300),
            (Fault::Settle(shard), 50..1500),
        ] {
            at += Duration::from_millis(random.random_range(after_ms));
            self.faults.push((at, fault));
        }
    }

    fn add(&mut self, random: &mut SmallRng) {
        let end = self.calm_at.as_millis() as u64;
        let begins = random.random_range(0..end);
        let ends = (begins + random.random_range(200..8000)).min(end);
        let [begins, ends] = [begins, ends].map(Duration::from_millis);
        let (host, shard) = (
            random.random_range(0..HOSTS),
            random.random_range(0..SHARDS),
        );
        let other = (host + random.random_range(1..HOSTS)) % HOSTS;
        let (fault, end) = match random.random_range(0..13) {
            0 | 1 => (
                Fault::Pause {
                    host,
                    stops_clock: random.random_bool(0.5),
                },
                Fault::Resume(host),
            ),
            2 => (Fault::Crash(host), Fault::Start(host)),
            3 => (Fault::Leave(host), Fault::Start(host)),
            4 => (Fault::Cut(host, other), Fault::Heal),
            5 => (Fault::CutLog(host), Fault::Heal),
            6 | 7 => (Fault::Loss(random.random_range(5..200)), Fault::Loss(0)),
            8 => (Fault::Late(random.random_range(20..300)), Fault::Late(0)),
            9 => (Fault::Deaf(host), Fault::Heal),
            10 => (
                Fault::Stale(shard, random.random_range(1..4)),
                Fault::Stale(shard, 0),
            ),
            11 => (Fault::LowSpace(shard, true), Fault::LowSpace(shard, false)),
            _ => {
                let lost = begins + Duration::from_millis(random.random_range(0..1500));
                let elected = lost + Duration::from_millis(random.random_range(100..3000));
                let settled = elected + Duration::from_millis(random.random_range(1..600));
                self.faults.extend([
                    (lost, Fault::LoseLeader(shard)),
                    (elected, Fault::Elect(shard)),
                ]);
                return self.faults.extend([
                    (begins, Fault::Stall(shard)),
                    (settled, Fault::Settle(shard)),
                ]);
            }
        };
        self.faults.extend([(begins, fault), (ends, end)]);
    }
}
