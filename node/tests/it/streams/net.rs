//! Nodes on one virtual time, clients that the test plays, and a network that it
//! controls.

use std::time::Duration;

use hark_node::{Machine, Node};
use serde_json::{Value, json};

/// The fate of messages that were sent together: they may be lost, doubled or
/// reordered.
pub(crate) type Weather = Box<dyn FnMut(Vec<Value>) -> Vec<Value>>;

pub(crate) struct Net {
    machines: Vec<(String, Machine)>,
    weather: Weather,
    now: Duration,
    /// The messages to clients that were not taken yet.
    received: Vec<Value>,
}

impl Net {
    pub(crate) fn new() -> Self {
        let weather = Box::new(std::convert::identity);
        Self {
            machines: Vec::new(),
            weather,
            now: Duration::ZERO,
            received: Vec::new(),
        }
    }

    /// Adds a node that has its name and may send.
    pub(crate) fn add<S: Default + 'static>(&mut self, id: &str, program: impl FnOnce(&Node<S>)) {
        self.machines
            .push((id.to_owned(), Machine::new(program, 1)));
        let init = json!({"type": "init", "msg_id": 0, "node_id": id, "node_ids": [id]});
        self.post("c0", id, init);
        self.settle();
        let answer = self.received.pop().expect("init is answered");
        assert_eq!(answer["body"]["type"], "init_ok");
        // Lets the node send.
        self.post("c0", id, json!({"type": "anything"}));
        self.settle();
    }

    pub(crate) fn set_weather(&mut self, weather: impl FnMut(Vec<Value>) -> Vec<Value> + 'static) {
        self.weather = Box::new(weather);
    }

    pub(crate) fn machine(&mut self, id: &str) -> &mut Machine {
        let found = self.machines.iter_mut().find(|(name, _)| name == id);
        &mut found.expect("there is such a node").1
    }

    /// Drops a node with all that it holds.
    pub(crate) fn remove(&mut self, id: &str) {
        self.machines.retain(|(name, _)| name != id);
    }

    pub(crate) fn now(&self) -> Duration {
        self.now
    }

    /// Sends a message, lets all nodes react at once, and returns the bodies that
    /// came to clients.
    pub(crate) fn send(&mut self, src: &str, dest: &str, body: Value) -> Vec<Value> {
        self.post(src, dest, body);
        self.settle();
        self.take()
    }

    fn post(&mut self, src: &str, dest: &str, body: Value) {
        let line = json!({"src": src, "dest": dest, "body": body}).to_string();
        let now = self.now;
        self.machine(dest).handle_line(now, line.as_bytes());
    }

    /// Lets time pass, and returns the bodies that came meanwhile.
    pub(crate) fn pass(&mut self, time: Duration) -> Vec<Value> {
        let end = self.now + time;
        loop {
            self.settle();
            let due = self
                .machines
                .iter()
                .filter_map(|(_, machine)| machine.next_timeout())
                .min();
            self.now = due.unwrap_or(end).clamp(self.now, end);
            for (_, machine) in &mut self.machines {
                machine.handle_timeout(self.now);
            }
            if due.is_none_or(|due| due > end) {
                self.settle();
                return self.take();
            }
        }
    }

    /// Carries messages until none is in flight.
    fn settle(&mut self) {
        loop {
            let mut output = Vec::new();
            for (_, machine) in &mut self.machines {
                machine.take_output(&mut output);
            }
            if output.is_empty() {
                return;
            }
            let lines = output
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty());
            let messages = lines
                .map(|line| serde_json::from_slice(line).unwrap())
                .collect();
            for message in (self.weather)(messages) {
                self.deliver(message);
            }
        }
    }

    fn deliver(&mut self, message: Value) {
        let found = self
            .machines
            .iter_mut()
            .find(|(name, _)| message["dest"] == **name);
        match found {
            Some((_, machine)) => machine.handle_line(self.now, message.to_string().as_bytes()),
            None => self.received.push(message),
        }
    }

    fn take(&mut self) -> Vec<Value> {
        let bodies = self
            .received
            .drain(..)
            .map(|mut message| message["body"].take());
        let without_id = |mut body: Value| {
            body.as_object_mut().unwrap().remove("msg_id");
            body
        };
        bodies.map(without_id).collect()
    }
}
