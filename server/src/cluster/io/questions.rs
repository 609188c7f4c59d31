//! [`Questions`]: questions of an administrator to every live server, until each has answered
//! or the time is over. The network may lose questions and answers: a question is asked again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster::ServerId;
use crate::cluster::administer::{Question, Told};
use crate::store::Completer;

/// Maximum questions in flight. Further ones are unavailable.
const QUESTIONS_MAX: usize = 64;

/// The interval at which a question is repeated, and the time after which a server without an
/// answer is given up.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(5);

/// The answer of each server; `None` from a server that did not answer in time.
pub(super) type Answers = Vec<(ServerId, Option<Told>)>;

/// The questions in flight.
#[derive(Debug, Default)]
pub(super) struct Questions {
    open: BTreeMap<u64, Open>,
    last_id: u64,
}

#[derive(Debug)]
struct Open {
    question: Question,
    answers: BTreeMap<ServerId, Option<Told>>,
    completer: Completer<Answers>,
    begun: Duration,
    asked_at: Duration,
}

impl Questions {
    /// Asks these servers. Returns the number of the question, if it is to be sent.
    pub(super) fn ask(
        &mut self,
        question: Question,
        servers: impl Iterator<Item = ServerId>,
        completer: Completer<Answers>,
        now: Duration,
    ) -> Option<u64> {
        if self.open.len() >= QUESTIONS_MAX {
            // Dropping the completer completes it.
            return None;
        }
        let answers: BTreeMap<_, _> = servers.map(|server| (server, None)).collect();
        if answers.is_empty() {
            completer.complete(Ok(Vec::new()));
            return None;
        }
        self.last_id += 1;
        let open = Open {
            question,
            answers,
            completer,
            begun: now,
            asked_at: now,
        };
        self.open.insert(self.last_id, open);
        Some(self.last_id)
    }

    /// Takes an answer. The first one of a server counts.
    pub(super) fn told(&mut self, server: ServerId, id: u64, told: Told) {
        let Some(open) = self.open.get_mut(&id) else {
            return;
        };
        open.answers.entry(server).or_default().get_or_insert(told);
        if open.answers.values().all(Option::is_some) {
            self.complete(id);
        }
    }

    /// Returns the questions to ask again, and completes those whose time is over.
    pub(super) fn due(&mut self, now: Duration) -> Vec<(u64, Question)> {
        let is_over = |open: &Open| now.saturating_sub(open.begun) >= PATIENCE;
        let over = self.open.iter().filter(|(_, open)| is_over(open));
        let over: Vec<_> = over.map(|(id, _)| *id).collect();
        over.into_iter().for_each(|id| self.complete(id));
        let is_due = |open: &Open| now.saturating_sub(open.asked_at) >= ASK_AGAIN_AFTER;
        let due = self.open.iter_mut().filter(|(_, open)| is_due(open));
        let again = due.map(|(id, open)| {
            open.asked_at = now;
            (*id, open.question.clone())
        });
        again.collect()
    }

    fn complete(&mut self, id: u64) {
        if let Some(open) = self.open.remove(&id) {
            open.completer
                .complete(Ok(open.answers.into_iter().collect()));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::store::Pending;

    const SERVERS: [ServerId; 2] = [ServerId(3), ServerId(4)];

    fn asked(questions: &mut Questions) -> (u64, Pending<Answers>) {
        let (completer, answers) = Pending::new();
        let servers = SERVERS.into_iter();
        let id = questions.ask(Question::Describe, servers, completer, Duration::ZERO);
        (id.unwrap(), answers)
    }

    #[test]
    fn answers_of_all_servers_complete_a_question() {
        let mut questions = Questions::default();
        let (id, answers) = asked(&mut questions);
        questions.told(SERVERS[1], id, Told::Kicked(2));
        questions.told(SERVERS[1], id, Told::Kicked(0));
        questions.told(SERVERS[0], id + 1, Told::Kicked(7));
        assert!(questions.due(Duration::from_millis(499)).is_empty());
        assert_eq!(questions.due(ASK_AGAIN_AFTER), [(id, Question::Describe)]);
        questions.told(SERVERS[0], id, Told::Kicked(1));
        let expected = vec![
            (SERVERS[0], Some(Told::Kicked(1))),
            (SERVERS[1], Some(Told::Kicked(2))),
        ];
        assert_eq!(answers.now_or_never(), Some(Ok(expected)));
    }

    #[test]
    fn server_without_an_answer_is_given_up() {
        let mut questions = Questions::default();
        let (id, answers) = asked(&mut questions);
        questions.told(SERVERS[0], id, Told::Kicked(1));
        assert!(questions.due(PATIENCE).is_empty());
        let expected = vec![(SERVERS[0], Some(Told::Kicked(1))), (SERVERS[1], None)];
        assert_eq!(answers.now_or_never(), Some(Ok(expected)));
    }

    #[test]
    fn too_many_questions_are_unavailable() {
        let mut questions = Questions::default();
        let _open: Vec<_> = (0..QUESTIONS_MAX).map(|_| asked(&mut questions)).collect();
        let (completer, answers) = Pending::new();
        let servers = SERVERS.into_iter();
        let id = questions.ask(Question::Describe, servers, completer, Duration::ZERO);
        assert_eq!(id, None);
        assert!(matches!(answers.now_or_never(), Some(Err(_))));
    }
}
