//! `BiDiChat`.

use hark_grpc::v1::chat_reply::Reply;
use hark_grpc::v1::chat_request::Command;
use hark_grpc::v1::{
    Connected, CreateRequest, Credentials, DeleteReply, DeleteRequest, Disconnect, Hello, List,
    Listed, Names, NotOk, Opened, PasswordRequest, Ping,
};
use tonic::Code;

use super::server::{Server, Session, Subscription, to};

fn hello() -> Command {
    Command::Hello(Hello {
        version: 1,
        session: "session".to_owned(),
    })
}

fn not_ok(reply: Reply) -> String {
    match reply {
        Reply::NotOk(NotOk { code, .. }) => code,
        other => panic!("{other:?} is no refusal"),
    }
}

#[tokio::test]
async fn session_runs_on_one_stream() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut session = Session::open(&mut client).await;
    let opened = Opened {
        version: 1,
        frame_bytes_max: 64 * 1024,
    };
    assert_eq!(session.ask(1, hello()).await, Reply::Hello(opened));
    let bob = |password: &str| ("bob".to_owned(), password.to_owned());
    let (user, password) = bob("");
    session
        .ok(
            2,
            Command::Create(CreateRequest {
                user,
                password,
                login: None,
            }),
        )
        .await;
    let (user, new) = bob("secret");
    session
        .ok(
            3,
            Command::Password(PasswordRequest {
                user,
                old: String::new(),
                new,
                login: None,
            }),
        )
        .await;
    let (user, password) = bob("secret");
    session
        .ok(4, Command::Login(Credentials { user, password }))
        .await;
    session.ok(5, Command::Ping(Ping {})).await;
    session.send(6, "bob", "a text, with a comma\nand a line");
    let number = session.stored(6).await;
    let list = |pattern: &str| {
        Command::List(List {
            pattern: pattern.to_owned(),
        })
    };
    assert_eq!(
        session.ask(7, list("")).await,
        Reply::Names(Names {
            names: vec!["bob".to_owned()]
        })
    );
    assert_eq!(
        session.next().await,
        Some((
            7,
            Reply::Listed(Listed {
                count: 1,
                truncated: false
            })
        ))
    );
    assert_eq!(
        session.ask(8, list("x")).await,
        Reply::Listed(Listed {
            count: 0,
            truncated: false
        })
    );

    let (user, password) = bob("secret");
    let connect = Command::Connect(hark_grpc::v1::ConnectRequest { user, password });
    let connected = Connected {
        queued: 1,
        rooms: None,
        receipt: String::new(),
    };
    assert_eq!(session.ask(9, connect).await, Reply::Connected(connected));
    let message = session.message().await;
    assert_eq!(
        (&*message.sender, &*message.text),
        ("bob", "a text, with a comma\nand a line")
    );
    assert_eq!(message.sequence, number);
    session.say(0, Command::Ack(message.sequence));
    session.ok(10, Command::Disconnect(Disconnect {})).await;

    let (user, password) = bob("secret");
    let delete = Command::Delete(DeleteRequest {
        user,
        password,
        login: None,
    });
    assert_eq!(
        session.ask(11, delete.clone()).await,
        Reply::Deleted(DeleteReply { existed: true })
    );
    assert_eq!(
        session.ask(12, delete).await,
        Reply::Deleted(DeleteReply { existed: false })
    );
    session.end();
    assert_eq!(session.next().await, None);
}

#[tokio::test]
async fn malformed_request_is_refused_and_the_stream_continues() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    let mut session = Session::open(&mut client).await;
    assert_eq!(
        not_ok(session.ask(0, Command::Ping(Ping {})).await),
        "bad-request"
    );
    let login = Command::Login(Credentials {
        user: "b b".to_owned(),
        password: String::new(),
    });
    assert_eq!(not_ok(session.ask(1, login).await), "bad-name");
    let login = Some(Credentials {
        user: "bob".to_owned(),
        password: String::new(),
    });
    let (user, password) = ("bob".to_owned(), String::new());
    let delete = Command::Delete(DeleteRequest {
        user,
        password,
        login,
    });
    assert_eq!(not_ok(session.ask(5, delete).await), "bad-request");
    session.say_nothing(3);
    assert_eq!(not_ok(session.next().await.unwrap().1), "unknown-command");
    session.send(4, "bob", &"x".repeat(64 * 1024 - 255));
    assert_eq!(not_ok(session.next().await.unwrap().1), "too-large");
    session.ok(5, Command::Ping(Ping {})).await;
    // Larger than the largest request.
    session.send(6, "bob", &"x".repeat(70_000));
    assert_eq!(
        session.replies.message().await.unwrap_err().code(),
        Code::OutOfRange
    );
}

#[tokio::test]
async fn send_behind_a_refused_hello_is_not_stored() {
    let hello = |version, session: &str| {
        Command::Hello(Hello {
            version,
            session: session.to_owned(),
        })
    };
    let refused = [
        vec![(1, hello(2, "session"))],
        vec![(1, hello(1, "no session"))],
        vec![(0, hello(1, "session"))],
        vec![(1, Command::Ping(Ping {})), (2, hello(1, "session"))],
        vec![(1, hello(1, "session")), (2, hello(1, "session"))],
    ];
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    for requests in refused {
        let mut session = Session::open(&mut client).await;
        let last = requests.last().unwrap().0;
        for (id, command) in requests {
            session.say(id, command);
        }
        session.send(9, "bob", "outside of its session");
        let mut refusals = 0;
        let end = loop {
            match session.replies.message().await {
                Ok(Some(reply)) if reply.id == last => {
                    assert_eq!(not_ok(reply.reply.unwrap()), "bad-request");
                    refusals += 1;
                }
                Ok(reply) => assert!(
                    reply.is_some_and(|reply| reply.id < last),
                    "the send was answered"
                ),
                Err(end) => break end,
            }
        };
        assert_eq!((refusals, end.code()), (1, Code::Unavailable));
    }
    let (_bob, connected) = Subscription::connect(&mut client, "bob").await;
    assert_eq!(connected.queued, 0);
}

#[tokio::test]
async fn pipelined_sends_are_answered_and_received_in_order() {
    const SENDS: u32 = 5000;
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    let mut sender = Session::open(&mut client).await;
    assert!(matches!(
        sender.ask(SENDS + 1, hello()).await,
        Reply::Hello(_)
    ));
    let mut receiver = Session::open(&mut client).await;
    assert_eq!(receiver.connect(1, "bob").await, 0);
    for id in 1..=SENDS {
        sender.send(id, "bob", &id.to_string());
    }
    // Every request is answered before the end.
    sender.end();
    let answers = async {
        for id in 1..=SENDS {
            sender.stored(id).await;
        }
        assert_eq!(sender.next().await, None);
    };
    let messages = async {
        for id in 1..=SENDS {
            let message = receiver.message().await;
            assert_eq!(message.text, id.to_string());
            receiver.say(0, Command::Ack(message.sequence));
        }
    };
    tokio::join!(answers, messages);
    drop(receiver);
    // Acknowledged in order, before later messages.
    let mut again = Session::open(&mut client).await;
    assert!(again.connect(1, "bob").await < 256);
}

#[tokio::test]
async fn session_moves_to_another_stream_and_closes_the_former() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    let mut former = Session::open(&mut client).await;
    assert!(matches!(former.ask(100, hello()).await, Reply::Hello(_)));
    former.send(1, "bob", "once");
    let first = former.stored(1).await;
    let mut latter = Session::open(&mut server.client().await).await;
    assert!(matches!(latter.ask(100, hello()).await, Reply::Hello(_)));
    assert_eq!(
        former.replies.message().await.unwrap_err().code(),
        Code::Aborted
    );
    for (id, is_repeat) in [(1, true), (2, false)] {
        latter.send(id, "bob", "once");
        assert_eq!(latter.stored(id).await == first, is_repeat);
    }
    assert_eq!(latter.connect(3, "bob").await, 2, "1 was a repeat");
}

#[tokio::test]
async fn taken_over_stream_stays_open_and_may_acknowledge() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    client.send(to("bob", "hello")).await.unwrap();
    let mut session = Session::open(&mut client).await;
    assert_eq!(session.connect(1, "bob").await, 1);
    let message = session.message().await;
    let (mut other, _) = Subscription::connect(&mut client, "bob").await;
    session.bye("taken-over").await;
    assert_eq!(other.message().await, message);
    session.say(0, Command::Ack(message.sequence));
    session.ok(2, Command::Ping(Ping {})).await;
    assert_eq!(session.connect(3, "bob").await, 0);
    other.bye("taken-over").await;
}
