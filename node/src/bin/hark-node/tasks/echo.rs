//! `echo`, and `batch_echo`: many echoes through the network, collected by
//! callbacks.

use std::cell::RefCell;
use std::rc::Rc;

use hark_node::{Error, ErrorCode, Json, Node, Request, Responder};
use serde::{Deserialize, Serialize};

pub(crate) fn register(node: &Node<()>) {
    node.handle("echo", async |_, request: Request<Echo>| Ok(request.body));
    node.receive("batch_echo", batch_echo);
}

#[derive(Serialize, Deserialize)]
struct Echo {
    echo: Json,
}

#[derive(Deserialize)]
struct Values {
    values: Vec<Json>,
}

#[derive(Serialize)]
struct Results {
    results: Vec<Json>,
}

/// Sends each value to this node itself as an echo.
async fn batch_echo(node: Node<()>, request: Request<Values>) {
    let Request {
        body: Values { values },
        responder,
        ..
    } = request;
    if values.is_empty() {
        return responder.reply(&Results {
            results: Vec::new(),
        });
    }
    let batch = Rc::new(RefCell::new(Batch::new(values.len(), responder.clone())));
    for (index, echo) in values.into_iter().enumerate() {
        let batch = Rc::clone(&batch);
        let take = move |_: &Node<()>, outcome| batch.borrow_mut().take(index, outcome);
        if let Err(error) = node.rpc(node.id(), "echo", &Echo { echo }, take) {
            return responder.fail(&error);
        }
    }
}

/// The results of a batch so far, and the request to answer.
struct Batch {
    /// The results in the order of the values.
    results: Vec<Option<Json>>,
    /// The number of results that are missing.
    missing: usize,
    responder: Responder,
}

impl Batch {
    fn new(count: usize, responder: Responder) -> Self {
        Self {
            results: vec![None; count],
            missing: count,
            responder,
        }
    }

    /// Adds an outcome. The answer is the first failure or, once the last
    /// result has arrived, the results.
    fn take(&mut self, index: usize, outcome: Result<Json, Error>) {
        match outcome.and_then(|reply| echo_of(&reply)) {
            Ok(echo) => self.keep(index, echo),
            Err(error) => self.responder.fail(&error),
        }
    }

    fn keep(&mut self, index: usize, echo: Json) {
        if let Some(result) = self.results.get_mut(index) {
            *result = Some(echo);
        }
        self.missing -= 1;
        if self.missing == 0 {
            let results = self.results.drain(..).flatten().collect();
            self.responder.reply(&Results { results });
        }
    }
}

fn echo_of(reply: &Json) -> Result<Json, Error> {
    let unknown = |error| {
        Error::new(
            ErrorCode::Crash,
            format!("the reply is not an echo: {error}"),
        )
    };
    reply.parse().map(|Echo { echo }| echo).map_err(unknown)
}
