//! The streams of the node: a log that can be watched, and a chat that echoes.

use hark_node::stream::{Bidi, Services, Sink};
use hark_node::{Error, Node};
use serde::{Deserialize, Serialize};

/// Registers the streams of a node.
pub(crate) fn register<S: 'static>(node: &Node<S>) {
    let services = Services::new(node);
    services.server_stream("LogWatcher", "WatchLogs", async |_, watch, sink| {
        watch_logs(&watch, &sink)
    });
    services.bidi("Chat", "BiDiChat", |_, _| Ok(EchoChat));
}

#[derive(Deserialize)]
struct Watch {
    /// The level of the lines; all levels if it is absent.
    filter: Option<String>,
    /// The maximum number of lines; all lines if it is absent.
    limit: Option<u64>,
}

#[derive(Serialize)]
struct LogLine {
    level: &'static str,
    msg: &'static str,
}

const LOG: [LogLine; 8] = [
    LogLine {
        level: "INFO",
        msg: "node started",
    },
    LogLine {
        level: "ERROR",
        msg: "disk full",
    },
    LogLine {
        level: "WARN",
        msg: "retrying write",
    },
    LogLine {
        level: "ERROR",
        msg: "connection reset",
    },
    LogLine {
        level: "INFO",
        msg: "reconnected",
    },
    LogLine {
        level: "DEBUG",
        msg: "heartbeat sent",
    },
    LogLine {
        level: "ERROR",
        msg: "timeout",
    },
    LogLine {
        level: "INFO",
        msg: "node ready",
    },
];

fn watch_logs(watch: &Watch, sink: &Sink<&LogLine>) -> Result<(), Error> {
    let is_wanted = |line: &&LogLine| {
        watch
            .filter
            .as_ref()
            .is_none_or(|level| level == line.level)
    };
    let limit = watch.limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    });
    LOG.iter()
        .filter(is_wanted)
        .take(limit)
        .try_for_each(|line| sink.send(&line))
}

#[derive(Serialize, Deserialize)]
struct Text {
    text: String,
}

struct EchoChat;

impl<S: 'static> Bidi<S> for EchoChat {
    type In = Text;
    type Out = Text;

    async fn receive(&mut self, _: &Node<S>, Text { text }: Text) -> Result<Text, Error> {
        Ok(Text {
            text: format!("echo: {text}"),
        })
    }
}
