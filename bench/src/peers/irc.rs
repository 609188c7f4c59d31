//! ngircd: IRC, without queues. IRC has no acknowledgements; a `PING` after each batch stands
//! in for them, since its `PONG` shows that the server has handled the batch.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::{Durability, Peer, PeerCodec, Received, Role, missing_package, user_name};
use crate::load::text::{Stamp, Text};
use crate::server::{Server, version, write_settings};

/// ngircd.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ngircd;

/// The path of Debian's package.
const PROGRAM: &str = "/usr/sbin/ngircd";

impl Peer for Ngircd {
    fn name(&self) -> &'static str {
        "ngircd (no queue)"
    }

    fn durability(&self) -> Durability {
        Durability::Nothing
    }

    /// Its listen backlog is ten connections, so that many at a time have to retry.
    fn users_max(&self) -> usize {
        10_000
    }

    /// Each member that joins is announced to all others.
    fn members_max(&self) -> usize {
        1_000
    }

    fn version(&self) -> anyhow::Result<String> {
        version(Command::new(PROGRAM).arg("--version")).with_context(|| missing_package("ngircd"))
    }

    fn start(&self, port: u16, folder: &Path) -> anyhow::Result<Server> {
        let settings = format!(
            "[Global]\nName = irc.bench.test\nInfo = bench\nListen = 127.0.0.1\nPorts = {port}\n\
             MotdPhrase = bench\nServerUID = {user}\nServerGID = {user}\n\
             [Limits]\nMaxConnections = 0\nMaxConnectionsIP = 0\nMaxNickLength = 16\nMaxPenaltyTime = 0\n\
             PingTimeout = 3600\nPongTimeout = 3600\nConnectRetry = 3600\n\
             [Options]\nDNS = no\nIdent = no\nPAM = no\nOperCanUseMode = no\n",
            user = if crate::server::is_root() {
                "root"
            } else {
                "nobody"
            },
        );
        let mut command = Command::new(PROGRAM);
        command
            .arg("--nodaemon")
            .arg("--config")
            .arg(write_settings(folder, "ngircd.conf", &settings)?);
        Server::start(self.name(), command, port, folder)
    }

    fn preparations(&self, _users: usize) -> Box<dyn Iterator<Item = Box<dyn PeerCodec>>> {
        Box::new(std::iter::empty())
    }

    fn codec(&self, role: Role) -> Box<dyn PeerCodec> {
        Box::new(Irc {
            role,
            sent: 0,
            accepted: 0,
        })
    }
}

/// The channel that stands for the room.
const CHANNEL: &str = "#bench";

/// A connection.
struct Irc {
    role: Role,
    sent: usize,
    accepted: usize,
}

impl PeerCodec for Irc {
    fn open(&mut self, output: &mut Vec<u8>) {
        let name = self.role.user_name();
        output.extend_from_slice(format!("NICK {name}\r\nUSER {name} 0 * :{name}\r\n").as_bytes());
    }

    fn send(&mut self, to: usize, text: &Text, output: &mut Vec<u8>) {
        self.sent += 1;
        output.extend_from_slice(b"PRIVMSG ");
        match self.role.is_in_room() {
            true => output.extend_from_slice(CHANNEL.as_bytes()),
            false => output.extend_from_slice(user_name(to).as_bytes()),
        }
        output.extend_from_slice(b" :");
        output.extend_from_slice(text);
        output.extend_from_slice(b"\r\n");
    }

    fn sent(&mut self, output: &mut Vec<u8>) {
        output.extend_from_slice(format!("PING :{}\r\n", self.sent).as_bytes());
    }

    fn take(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        received: &mut Received,
    ) -> anyhow::Result<usize> {
        let mut done = 0;
        while let Some(rest) = input.get(done..)
            && let Some(end) = rest.iter().position(|&byte| byte == b'\n')
        {
            let line = rest.get(..end).unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            self.take_line(line, output, received)
                .with_context(|| format!("the server says {}", String::from_utf8_lossy(line)))?;
            done += end + 1;
        }
        Ok(done)
    }
}

/// The replies that end the greeting, with or without a message of the day.
const END_OF_GREETING: [&[u8]; 2] = [b"376", b"422"];

/// The reply that ends the answer to `JOIN`.
const END_OF_NAMES: &[u8] = b"366";

impl Irc {
    fn take_line(
        &mut self,
        line: &[u8],
        output: &mut Vec<u8>,
        received: &mut Received,
    ) -> anyhow::Result<()> {
        let mut words = line.split(|&byte| byte == b' ');
        let first = words.next().unwrap_or_default();
        if first == b"PING" {
            output.extend_from_slice(b"PONG");
            output.extend_from_slice(line.get(4..).unwrap_or_default());
            output.extend_from_slice(b"\r\n");
            return Ok(());
        }
        let command = words.next().unwrap_or_default();
        match command {
            b"PRIVMSG" => {
                let at = line
                    .iter()
                    .skip(1)
                    .position(|&byte| byte == b':')
                    .context("no text")?;
                received
                    .delivered
                    .push(Stamp::read(line.get(at + 2..).unwrap_or_default())?);
            }
            b"PONG" => {
                let number = line.rsplit(|&byte| byte == b':').next().unwrap_or_default();
                let accepted: usize = std::str::from_utf8(number)?.parse()?;
                received.accepted += accepted.saturating_sub(self.accepted);
                self.accepted = accepted;
            }
            _ if END_OF_GREETING.contains(&command) && self.role.is_in_room() => {
                output.extend_from_slice(format!("JOIN {CHANNEL}\r\n").as_bytes());
            }
            _ if END_OF_GREETING.contains(&command) || command == END_OF_NAMES => {
                received.is_ready = true;
            }
            _ if first == b"ERROR" || matches!(command.first(), Some(b'4' | b'5')) => {
                bail!("this is an error")
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_once_they_are_whole() {
        let stamp = Stamp {
            due_ns: 5,
            sender: 1,
            number: 2,
        };
        let text = String::from_utf8(stamp.write().to_vec()).unwrap();
        let input = format!(
            ":irc 001 u1 :Welcome\r\n:irc 422 u1 :No MOTD\r\n:s1!~s1@127.0.1.1 PRIVMSG u1 :{text}\r\n\
             :irc PONG irc :7\r\n:irc PONG irc :9\r\nPING :irc\r\nhalf"
        );
        let (mut answer, mut received) = (Vec::new(), Received::default());
        let mut client = Ngircd.codec(Role::Receiver(1));
        assert_eq!(
            client
                .take(input.as_bytes(), &mut answer, &mut received)
                .unwrap(),
            input.len() - 4
        );
        assert!(received.is_ready);
        assert_eq!(
            (received.delivered, received.accepted, &*answer),
            (vec![stamp], 9, &b"PONG :irc\r\n"[..])
        );
        client
            .take(
                b":irc 401 s1 u9 :No such nick\r\n",
                &mut answer,
                &mut Received::default(),
            )
            .unwrap_err();
    }
}
