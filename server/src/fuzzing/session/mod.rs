//! A whole chat as a list of operations: connections that create, enter, send,
//! repeat, acknowledge, break off and come back, commits that fail, and starts
//! of the server. Everything that comes out is compared with a model.

mod connection;
mod model;
mod rights;
mod world;

use self::rights::Rights;
use self::world::World;

/// Operations in one run, at most.
const OPS_MAX: usize = 200;

/// Four bytes and a fifth: what, on which connection, for which user, and how
/// much. Letters and digits mean what they look like, so that seeds are text;
/// every other byte means one of them. The fifth of the first operation says
/// what the operator has set; the others' are ignored.
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
    /// Mostly with a password.
    CreateByOperator,
    Login,
    /// Connects: `R`eceives.
    Receive,
    Disconnect,
    Delete,
    /// Sets the password, where it may be.
    Password,
    List,
    Ping,
    Send,
    /// Many sends, none of which is waited for.
    Burst,
    /// Repeats a send of the session.
    Again,
    Ack,
    /// Acknowledges what was never pushed.
    AckNothing,
    /// The link breaks. The client comes back and repeats.
    Break,
    /// The client of a session comes by this connection, whatever it had.
    Hello,
    /// The next commit fails.
    Fail,
    /// The server starts again: after an orderly end, or after none.
    Restart,
    /// Waits until nothing is under way.
    Settle,
    /// The store recovers, while nobody reads what comes out.
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
        let [kind, connection, user, amount, _] = *bytes else { return None };
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

/// Runs the operations, then lets every reader read to the end, and checks that
/// what was answered `ok` came exactly once, in order, and nothing else did.
///
/// # Panics
/// Where that is not so, and where an answer is another than it should be.
pub fn session(data: &[u8]) {
    let ops: Vec<_> = data.chunks(5).filter_map(Op::from_bytes).take(OPS_MAX).collect();
    world::block_on(async {
        let rights = data.get(4).map_or(Rights::OPEN, |byte| Rights::from_byte(*byte));
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
    fn any_conversation_keeps_the_promise() {
        hark_seeds::check("session", super::session);
    }
}
