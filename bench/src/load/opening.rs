//! Opening many connections, some at a time.

use std::net::SocketAddr;

use tokio::task::JoinSet;

use super::{Connection, on_a_runtime};
use crate::peers::{Peer, PeerCodec, Role};

/// The most connections that are opened at a time.
const AT_A_TIME: usize = 8;

/// Opens connections, some at a time. Returns them with their indexes.
///
/// # Errors
/// If the server refuses one.
pub(crate) async fn open_all(
    peer: &dyn Peer,
    address: SocketAddr,
    roles: impl Iterator<Item = Role>,
) -> anyhow::Result<Vec<(usize, Connection)>> {
    let (mut opening, mut opened) = (JoinSet::new(), Vec::new());
    for (index, role) in roles.enumerate() {
        if opening.len() >= AT_A_TIME
            && let Some(connection) = opening.join_next().await
        {
            opened.push(connection??);
        }
        let connection = Connection::open(address, peer.codec(role));
        opening.spawn_local(async move { anyhow::Ok((index, connection.await?)) });
    }
    while let Some(connection) = opening.join_next().await {
        opened.push(connection??);
    }
    Ok(opened)
}

/// Opens and closes the connections that prepare a peer for this many users.
///
/// # Errors
/// If the server refuses one.
pub(crate) fn prepare(peer: &dyn Peer, address: SocketAddr, users: usize) -> anyhow::Result<()> {
    if users == 0 {
        return Ok(());
    }
    pass_through(address, peer.preparations(users))
}

/// Opens and closes the connections that create a room with so many members.
///
/// # Errors
/// If the server refuses one.
pub(crate) fn prepare_room(
    peer: &dyn Peer,
    address: SocketAddr,
    members: usize,
) -> anyhow::Result<()> {
    pass_through(address, peer.room_preparations(members))
}

fn pass_through(
    address: SocketAddr,
    codecs: impl Iterator<Item = Box<dyn PeerCodec>>,
) -> anyhow::Result<()> {
    on_a_runtime(async {
        let mut opening = JoinSet::new();
        for codec in codecs {
            if opening.len() >= AT_A_TIME
                && let Some(opened) = opening.join_next().await
            {
                drop(opened??);
            }
            opening.spawn_local(Connection::open(address, codec));
        }
        while let Some(opened) = opening.join_next().await {
            drop(opened??);
        }
        Ok(())
    })
}
