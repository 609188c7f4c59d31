//! The replicated state: the program's state machine, and the remembered
//! outcomes of each session, so that a request that arrives twice is applied
//! once. It knows neither log nor network.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::StateMachine;
use super::bugs::{Bug, is_planted};
use crate::error::Error;

/// A command, with the name under which it is applied at most once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Request<C> {
    /// The server that a client asked.
    pub(super) origin: String,
    /// The incarnation of that server, which has its own session.
    pub(super) life: u64,
    /// The number of the request in that incarnation.
    pub(super) number: u64,
    /// The origin waits for no request below this one.
    pub(super) floor: u64,
    pub(super) command: C,
}

impl<C> Request<C> {
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (&self.origin, self.life, self.number) == (&other.origin, other.life, other.number)
    }
}

/// The outcomes of a session that its origin may still request.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Session<R> {
    life: u64,
    floor: u64,
    outcomes: BTreeMap<u64, Result<R, Error>>,
}

impl<R> Session<R> {
    const fn new(life: u64) -> Self {
        Self {
            life,
            floor: 0,
            outcomes: BTreeMap::new(),
        }
    }

    /// Forgets the outcomes that the origin has received or given up.
    fn raise(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
        self.outcomes = self.outcomes.split_off(&self.floor);
    }
}

/// The content of a snapshot.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(super) struct Replicated<M: StateMachine> {
    pub(super) machine: M,
    /// One for each server that has made a request.
    sessions: BTreeMap<String, Session<M::Reply>>,
}

impl<M: StateMachine> Default for Replicated<M> {
    fn default() -> Self {
        Self {
            machine: M::default(),
            sessions: BTreeMap::new(),
        }
    }
}

impl<M: StateMachine> Replicated<M> {
    /// Applies a request, unless it was applied before or belongs to a
    /// previous incarnation of its origin.
    pub(super) fn apply(&mut self, request: &Request<M::Command>) {
        let session = self
            .sessions
            .entry(request.origin.clone())
            .or_insert_with(|| Session::new(request.life));
        if request.life > session.life {
            *session = Session::new(request.life);
        }
        if request.life < session.life {
            return;
        }
        session.raise(request.floor);
        let is_known =
            request.number < session.floor || session.outcomes.contains_key(&request.number);
        if !is_known || is_planted(Bug::AppliesTwice) {
            let outcome = self.machine.apply(&request.command);
            session.outcomes.insert(request.number, outcome);
        }
    }

    /// Returns the outcome of a request that was applied.
    pub(super) fn outcome(
        &self,
        origin: &str,
        life: u64,
        number: u64,
    ) -> Option<&Result<M::Reply, Error>> {
        let session = self
            .sessions
            .get(origin)
            .filter(|session| session.life == life)?;
        session.outcomes.get(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the commands that it has applied.
    #[derive(Default, Serialize, Deserialize)]
    struct Count(u64);

    impl StateMachine for Count {
        type Command = ();
        type Reply = u64;

        fn apply(&mut self, (): &()) -> Result<u64, Error> {
            self.0 += 1;
            Ok(self.0)
        }
    }

    fn request(life: u64, number: u64, floor: u64) -> Request<()> {
        Request {
            origin: "n1".into(),
            life,
            number,
            floor,
            command: (),
        }
    }

    #[test]
    fn requests_are_applied_once_in_any_order() {
        let mut replicated = Replicated::<Count>::default();
        for number in [2, 1, 2, 1, 3] {
            replicated.apply(&request(1, number, 1));
        }
        assert_eq!(replicated.machine.0, 3);
        assert_eq!(replicated.outcome("n1", 1, 2), Some(&Ok(1)));
    }

    #[test]
    fn outcomes_are_forgotten_below_the_floor() {
        let mut replicated = Replicated::<Count>::default();
        for (number, floor) in [(1, 1), (2, 1), (3, 3), (1, 1)] {
            replicated.apply(&request(1, number, floor));
        }
        assert_eq!(
            replicated.machine.0, 3,
            "a request below the floor was applied again"
        );
        assert_eq!(replicated.outcome("n1", 1, 2), None);
        assert_eq!(replicated.outcome("n1", 1, 3), Some(&Ok(3)));
    }

    #[test]
    fn requests_of_a_former_life_are_ignored() {
        let mut replicated = Replicated::<Count>::default();
        for (life, number) in [(1, 5), (2, 1), (1, 6), (2, 2)] {
            replicated.apply(&request(life, number, 1));
        }
        assert_eq!(replicated.machine.0, 3);
        assert_eq!(replicated.outcome("n1", 1, 5), None);
        let json = serde_json::to_string(&replicated).unwrap();
        let again: Replicated<Count> = serde_json::from_str(&json).unwrap();
        assert_eq!(again.outcome("n1", 2, 2), Some(&Ok(3)));
    }
}
