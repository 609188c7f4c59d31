//! Tests of the client against misbehaving servers.
//!
//! | module | contents |
//! | --- | --- |
//! | `conversation` | the server's side of a connection, over each transport |
//! | `peer` | one side of a connection in memory, scripted by the test |
//! | `chat` | a small server in memory, with fault injection |
//! | `hark` | execution of the real binary |
//! | `over_native`, `over_grpc` | the tests of the library, over each transport |
//! | the others | the tests of the binary |

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![expect(clippy::duplicate_mod, reason = "the same tests over each transport")]

mod any_line;
mod chat;
mod conversation;
mod full_screen;
mod hark;
mod not_grpc;
mod one_shot;
mod peer;
mod piped;
mod terminal;

/// The tests of the library, identical over each transport.
macro_rules! over {
    ($transport:expr) => {
        mod acks;
        mod exactly_once;
        mod failover;
        mod identity;
        mod links;
        mod requests;
        mod rooms;

        fn transport() -> hark_client::Transport {
            $transport
        }

        fn config() -> (hark_client::Config, crate::peer::Peers) {
            crate::peer::config(transport())
        }

        async fn up() -> (
            hark_client::Handle,
            hark_client::Events,
            crate::peer::Peers,
            crate::peer::Peer,
        ) {
            crate::peer::up(transport()).await
        }
    };
}

#[path = "."]
mod over_native {
    over!(hark_client::Transport::Native);
}

#[path = "."]
mod over_grpc {
    over!(hark_client::Transport::Grpc {
        origin: "http://hark.test:1".to_owned()
    });
}
