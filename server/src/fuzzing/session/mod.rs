//! A whole chat as a list of operations: connections that create accounts, log in, send,
//! repeat, acknowledge, break and reconnect, failing commits, and restarts of the server.
//! All output is compared with a model.

mod connection;
mod model;
mod rights;
mod world;

use self::rights::Rights;
use self::world::World;

/// The maximum number of operations in one run.
const OPS_MAX: usize = 200;

/// An operation of five bytes: kind, connection, user, amount, and rights. Letters and
/// digits stand for themselves, so that seeds are text; every other byte maps to one of
/// them. Only the first operation's rights count: they are the operator's settings.
#[derive(Debug, Clone, Copy)]
struct Op {
    kind: Kind,
    connection: usize,
    user: usize,
    amount: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Create,
    /// Creates an account, mostly with a password.
    CreateByOperator,
    Login,
    /// Makes a `connect`: receives.
    Receive,
    Disconnect,
    Delete,
    /// Sets the password.
    Password,
    List,
    Ping,
    Send,
    /// Sends many messages, pipelined.
    Burst,
    /// Repeats a send of the session.
    Again,
    Ack,
    /// Acknowledges a number that was never pushed.
    AckNothing,
    /// Breaks the link. The client reconnects and repeats.
    Break,
    /// Moves the client of a session to this connection.
    Hello,
    /// Makes the next commit fail.
    Fail,
    /// Restarts the server, after an orderly stop or a kill.
    Restart,
    /// Waits until no request is in flight.
    Settle,
    /// Lets the store recover without polling the connections.
    Recover,
}

const KINDS: [(u8, Kind); 20] = [
    (b'C', Kind::Create),
    (b'P', Kind::CreateByOperator),
    (b'L', Kind::Login),
    (b'R', Kind::Receive),
    (b'D', Kind::Disconnect),
    (b'X', Kind::Delete),
    (b'W', Kind::Password),
    (b'T', Kind::List),
    (b'G', Kind::Ping),
    (b'S', Kind::Send),
    (b'B', Kind::Burst),
    (b'A', Kind::Again),
    (b'K', Kind::Ack),
    (b'N', Kind::AckNothing),
    (b'O', Kind::Break),
    (b'H', Kind::Hello),
    (b'F', Kind::Fail),
    (b'Z', Kind::Restart),
    (b'Q', Kind::Settle),
    (b'V', Kind::Recover),
];

impl Op {
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let [kind, connection, user, amount, _] = *bytes else {
            return None;
        };
        let known = KINDS.iter().find(|(letter, _)| *letter == kind);
        let (_, kind) = known.or_else(|| KINDS.get(usize::from(kind) % KINDS.len()))?;
        Some(Self {
            kind: *kind,
            connection: usize::from(connection) % model::CONNECTIONS,
            user: usize::from(user) % model::USERS.len(),
            amount: usize::from(amount.wrapping_sub(b'0')),
        })
    }
}

/// Runs the operations, then lets every reader read to the end, and checks that exactly the
/// messages answered `ok` arrived, once and in order.
///
/// # Panics
/// If a message is lost, repeated or out of order, or an answer is wrong.
pub fn session(data: &[u8]) {
    let ops: Vec<_> = data
        .chunks(5)
        .filter_map(Op::from_bytes)
        .take(OPS_MAX)
        .collect();
    world::block_on(async {
        let rights = data
            .get(4)
            .map_or(Rights::OPEN, |byte| Rights::from_byte(*byte));
        let mut world = World::new(ops.len(), rights);
        for op in ops {
            world.step(op).await;
        }
        world.finish().await;
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn random_sessions_keep_the_promise() {
        hark_seeds::check("session", super::session);
    }
}
