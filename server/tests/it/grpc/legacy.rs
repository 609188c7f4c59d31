//! The legacy service, `helloworld.Chat`.

use hark_grpc::helloworld::chat_client::ChatClient;
use hark_grpc::helloworld::{Command, Response, User};
use hark_grpc::v1::CreateRequest;
use hark_protocol::limits::FRAME_BYTES_MAX;
use hark_server::chat::Rules;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::raw::{self, Raw};
use super::server::{LIMITS, RULES, Server, Subscription, to};

/// A legacy client.
struct Old(ChatClient<Channel>);

impl Old {
    async fn new(server: &Server) -> Self {
        Self(ChatClient::new(server.channel().await))
    }

    async fn answer(&mut self, line: &str) -> Result<Response, Status> {
        Ok(self
            .0
            .try_command(Command {
                command: line.to_owned(),
            })
            .await?
            .into_inner())
    }

    #[track_caller]
    fn check(&mut self, line: &str, expected: &str) -> impl Future<Output = ()> {
        let at = std::panic::Location::caller();
        async move {
            let Response { message, name } = self.answer(line).await.unwrap();
            assert_eq!((&*message, &*name), (expected, ""), "{line:?} at {at}");
        }
    }

    /// Polls for messages.
    async fn listen(&mut self, name: &str) -> String {
        let response = self
            .0
            .listen(User {
                name: name.to_owned(),
            })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(response.name, "");
        response.message
    }
}

fn messages(texts: impl IntoIterator<Item = String>) -> String {
    texts
        .into_iter()
        .map(|text| format!("Message: {text}\n\n"))
        .collect()
}

#[tokio::test]
async fn typed_commands_are_answered_by_text() {
    let server = Server::start().await;
    let mut old = Old::new(&server).await;
    old.check("list", "No matching users").await;
    old.check("create bob", "User bob created").await;
    old.check("create amy\n", "User amy created").await;
    old.check("create bob", "Refused: bob already exists").await;
    old.check("list", "amy\nbob").await;
    old.check("list ^b", "bob").await;
    old.check("send bob hello there", "Message sent to bob")
        .await;
    old.check("send eve hello", "Refused: there is no user eve")
        .await;
    let connected = old.answer("connect bob").await.unwrap();
    assert_eq!(
        (&*connected.message, &*connected.name),
        ("Connection successful for user bob", "bob")
    );
    old.check("connect eve", "Refused: there is no user eve")
        .await;
    assert_eq!(old.listen("bob").await, "Message: hello there\n\n");
    assert_eq!(old.listen("bob").await, "");
    old.check("delete bob", "User bob deleted").await;
    old.check("delete bob", "There is no user bob").await;
    old.check("frobnicate", "Refused: unknown command; try help")
        .await;
    old.check("ping", "The server is up").await;
    assert!(
        old.answer("help")
            .await
            .unwrap()
            .message
            .contains("send USER TEXT")
    );
}

#[tokio::test]
async fn listen_gets_queued_messages_in_order_and_once() {
    let server = Server::start().await;
    let mut chat = server.client_and(&["bob"]).await;
    let mut old = Old::new(&server).await;
    assert_eq!(old.listen("").await, "");
    assert_eq!(old.listen("bob").await, "");
    assert_eq!(old.listen("eve").await, "Refused: there is no user eve");
    // One more than the limit of one answer.
    let texts: Vec<_> = (0..257).map(|nth| format!("{nth}, and\nmore")).collect();
    for text in &texts {
        chat.send(to("bob", text)).await.unwrap();
    }
    assert_eq!(old.listen("bob").await, messages(texts[..256].to_vec()));
    assert_eq!(old.listen("bob").await, messages(texts[256..].to_vec()));
    assert_eq!(old.listen("bob").await, "");
    let (_, connected) = Subscription::connect(&mut chat, "bob").await;
    assert_eq!(connected.queued, 0);
}

#[tokio::test]
async fn concurrent_listens_get_each_message_once() {
    let server = Server::start().await;
    let mut chat = server.client_and(&["bob"]).await;
    let old = Old::new(&server).await.0;
    let (mut got, mut expected) = (String::new(), Vec::new());
    for nth in 0..50 {
        chat.send(to("bob", &nth.to_string())).await.unwrap();
        expected.push(nth.to_string());
        let mut listeners = [old.clone(), old.clone(), old.clone()].map(Old);
        let [one, two, three] = &mut listeners;
        let all = futures::join!(one.listen("bob"), two.listen("bob"), three.listen("bob"));
        got.extend([all.0, all.1, all.2]);
    }
    got.push_str(&Old(old).listen("bob").await);
    assert_eq!(got, messages(expected));
}

#[tokio::test]
async fn listen_takes_nothing_from_an_open_subscription() {
    let server = Server::start().await;
    let mut chat = server.client_and(&["bob"]).await;
    let mut old = Old::new(&server).await;
    chat.send(to("bob", "1")).await.unwrap();
    let (mut bob, connected) = Subscription::connect(&mut chat, "bob").await;
    assert_eq!(connected.queued, 1);
    assert_eq!(old.listen("bob").await, "");
    assert_eq!(bob.message().await.text, "1");
    chat.send(to("bob", "2")).await.unwrap();
    assert_eq!(bob.message().await.text, "2");
    // Its `connect` takes over, as any `connect` does.
    old.answer("connect bob").await.unwrap();
    bob.bye("taken-over").await;
    assert_eq!(
        old.listen("bob").await,
        messages(["1".to_owned(), "2".to_owned()])
    );
}

#[tokio::test]
async fn message_too_long_for_the_answer_is_kept() {
    let server = Server::start_with(
        Rules {
            frame_bytes_max: FRAME_BYTES_MAX,
            ..RULES
        },
        LIMITS,
    )
    .await;
    let mut chat = server
        .client_and(&["bob"])
        .await
        .max_decoding_message_size(FRAME_BYTES_MAX);
    let mut old = Old::new(&server).await;
    // The longest message that fits, one behind it, and a longer one.
    let most = 4 * 1024 * 1024 - 1024;
    for length in [most, 1, most + 1] {
        chat.send(to("bob", &"x".repeat(length))).await.unwrap();
    }
    assert_eq!(old.listen("bob").await, messages(["x".repeat(most)]));
    assert_eq!(old.listen("bob").await, messages(["x".to_owned()]));
    let refused = old.listen("bob").await;
    assert!(
        refused.starts_with("Refused: the next message has 4193281 bytes"),
        "{refused}"
    );
    let (mut bob, connected) = Subscription::connect(&mut chat, "bob").await;
    assert_eq!(connected.queued, 1);
    assert_eq!(bob.message().await.text.len(), most + 1);
}

#[tokio::test]
async fn accounts_with_a_password_are_denied() {
    let server = Server::start().await;
    let mut chat = server.client().await;
    let eve = CreateRequest {
        user: "eve".to_owned(),
        password: "secret".to_owned(),
        login: None,
    };
    chat.create(eve).await.unwrap();
    chat.send(to("eve", "hello")).await.unwrap();
    let mut old = Old::new(&server).await;
    let denied = "Refused: wrong or missing password";
    old.check("connect eve", denied).await;
    old.check("delete eve", denied).await;
    assert_eq!(old.listen("eve").await, denied);
}

#[tokio::test]
async fn required_passwords_disable_the_service() {
    let server = Server::start_with(
        Rules {
            require_password: true,
            ..RULES
        },
        LIMITS,
    )
    .await;
    let mut old = Old::new(&server).await;
    let refused = old.answer("list").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused.message().contains("--require-password"),
        "{refused}"
    );
    let refused = old
        .0
        .listen(User {
            name: "bob".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn service_keeps_its_paths() {
    let server = Server::start().await;
    let mut raw = Raw::open(server.address()).await;
    raw.call(1, "/helloworld.Chat/try_command").await;
    raw.data(1, &raw::message(b"\x0a\x0acreate bob")).await;
    assert_eq!(
        raw.answer(1).await,
        raw::message(b"\x0a\x10User bob created")
    );
    raw.call(3, "/helloworld.Chat/listen").await;
    raw.data(3, &raw::message(b"\x0a\x03bob")).await;
    assert_eq!(raw.answer(3).await, raw::message(b""));
}
