//! The unary calls, and `List`.

use futures::future::join_all;
use hark_grpc::v1::chat_client::ChatClient;
use hark_grpc::v1::{
    CreateRequest, Credentials, DeleteRequest, Idempotency, ListRequest, PasswordRequest,
    SendRequest,
};
use hark_server::chat::Rules;
use tonic::Code;
use tonic::transport::Channel;
use tonic_types::StatusExt;

use super::server::{LIMITS, RULES, Server, Subscription, code, to};

fn idempotent(request: SendRequest, id: u32) -> SendRequest {
    SendRequest {
        idempotency: Some(Idempotency {
            session: "session".to_owned(),
            id,
        }),
        ..request
    }
}

fn credentials(user: &str, password: &str) -> Option<Credentials> {
    Some(Credentials {
        user: user.to_owned(),
        password: password.to_owned(),
    })
}

async fn create(client: &mut ChatClient<Channel>, user: &str, password: &str) {
    let request = CreateRequest {
        user: user.to_owned(),
        password: password.to_owned(),
        login: None,
    };
    client.create(request).await.unwrap();
}

/// Returns the names of a list, and whether it is truncated.
async fn list(client: &mut ChatClient<Channel>, request: ListRequest) -> (Vec<String>, bool) {
    let mut pages = client.list(request).await.unwrap().into_inner();
    let (mut names, mut truncated) = (Vec::new(), false);
    while let Some(page) = pages.message().await.unwrap() {
        assert!(!truncated, "only the last page says so");
        assert!(page.truncated || !page.names.is_empty());
        truncated = page.truncated;
        names.extend(page.names);
    }
    (names, truncated)
}

#[tokio::test]
async fn forwarded_call_is_never_local() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    for header in ["x-forwarded-for", "forwarded", "via"] {
        let mut request = tonic::Request::new(to("bob", "hello"));
        let value = "203.0.113.7".parse().unwrap();
        request.metadata_mut().insert(header, value);
        let refused = client.send(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{header}");
    }
}

#[tokio::test]
async fn refusal_has_a_status_and_a_protocol_code() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    create(&mut client, "eve", "secret").await;

    let again = CreateRequest {
        user: "bob".to_owned(),
        password: String::new(),
        login: None,
    };
    let refused = client.create(again).await.unwrap_err();
    assert_eq!(code(&refused), (Code::AlreadyExists, "exists"));
    assert_eq!(refused.message(), "bob already exists");
    let info = refused.get_details_error_info().unwrap();
    assert_eq!((&*info.reason, &*info.domain), ("exists", "hark"));

    let nowhere = client.send(to("nobody", "x")).await.unwrap_err();
    assert_eq!(code(&nowhere), (Code::NotFound, "no-such-user"));
    let unnamed = client.send(to("b b", "x")).await.unwrap_err();
    assert_eq!(code(&unnamed), (Code::InvalidArgument, "bad-name"));
    let too_large = client
        .send(to("bob", &"x".repeat(64 * 1024 - 255)))
        .await
        .unwrap_err();
    assert_eq!(code(&too_large), (Code::InvalidArgument, "too-large"));
    let wrong = SendRequest {
        login: credentials("eve", "guess"),
        ..to("bob", "x")
    };
    let denied = client.send(wrong).await.unwrap_err();
    assert_eq!(code(&denied), (Code::PermissionDenied, "denied"));
    let bad = PasswordRequest {
        user: "bob".to_owned(),
        old: String::new(),
        new: "a,b".to_owned(),
        login: None,
    };
    let bad_password = client.password(bad).await.unwrap_err();
    assert_eq!(code(&bad_password), (Code::InvalidArgument, "bad-password"));
    let pattern = ListRequest {
        pattern: "(".to_owned(),
        login: None,
    };
    let bad_pattern = client
        .list(pattern)
        .await
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap_err();
    assert_eq!(code(&bad_pattern), (Code::InvalidArgument, "bad-pattern"));
}

#[tokio::test]
async fn too_many_wrong_passwords_are_refused_with_a_delay() {
    let server = Server::start().await;
    let mut client = server.client().await;
    create(&mut client, "eve", "secret").await;
    let wrong = SendRequest {
        login: credentials("eve", "guess"),
        ..to("eve", "x")
    };
    let limited = loop {
        let refused = client.send(wrong.clone()).await.unwrap_err();
        if refused.code() == Code::ResourceExhausted {
            break refused;
        }
        assert_eq!(code(&refused), (Code::PermissionDenied, "denied"));
    };
    assert_eq!(code(&limited), (Code::ResourceExhausted, "rate-limited"));
    let seconds: u64 = limited
        .metadata()
        .get("hark-retry-after-s")
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(seconds > 0);
    let retry = limited.get_details_retry_info().unwrap();
    assert_eq!(retry.retry_delay.unwrap().as_secs(), seconds);
}

#[tokio::test]
async fn message_names_its_sender() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    create(&mut client, "eve", "secret").await;
    client.send(to("bob", "from nobody")).await.unwrap();
    let from_eve = SendRequest {
        login: credentials("eve", "secret"),
        ..to("bob", "from eve, with a comma")
    };
    client.send(from_eve).await.unwrap();

    let (mut bob, connected) = Subscription::connect(&mut client, "bob").await;
    assert_eq!(connected.queued, 2);
    let (first, second) = (bob.message().await, bob.message().await);
    assert_eq!((&*first.sender, &*first.text), ("", "from nobody"));
    assert_eq!(
        (&*second.sender, &*second.text),
        ("eve", "from eve, with a comma")
    );
    assert!(first.sequence < second.sequence && first.time_ms > 0);
}

#[tokio::test]
async fn repeated_send_is_stored_once() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    let mut numbers = Vec::new();
    for _ in 0..3 {
        numbers.push(
            client
                .send(idempotent(to("bob", "once"), 7))
                .await
                .unwrap()
                .into_inner()
                .sequence,
        );
        let refused = client
            .send(idempotent(to("late", "x"), 8))
            .await
            .unwrap_err();
        assert_eq!(code(&refused), (Code::NotFound, "no-such-user"));
    }
    create(&mut client, "late", "").await;
    let still = client
        .send(idempotent(to("late", "x"), 8))
        .await
        .unwrap_err();
    assert_eq!(
        code(&still),
        (Code::NotFound, "no-such-user"),
        "it was decided"
    );
    let without = client
        .send(idempotent(to("bob", "x"), 0))
        .await
        .unwrap_err();
    assert_eq!(code(&without), (Code::InvalidArgument, "bad-request"));
    let (mut bob, connected) = Subscription::connect(&mut client, "bob").await;
    assert_eq!(connected.queued, 1);
    assert_eq!(numbers, [Some(bob.message().await.sequence); 3]);
}

#[tokio::test]
async fn concurrent_sends_of_a_session_are_decided_once() {
    const SENDS: u32 = 300;
    let server = Server::start().await;
    let client = server.client_and(&["bob"]).await;
    let mut other = server.client().await;
    // Each id twice, over two connections, out of order.
    let sends = (0..2 * SENDS).map(|nth| {
        let mut client = if nth % 3 == 0 {
            client.clone()
        } else {
            other.clone()
        };
        let id = 1 + nth * 7 % SENDS;
        async move {
            client
                .send(idempotent(to("bob", &id.to_string()), id))
                .await
        }
    });
    for sent in join_all(sends).await {
        sent.unwrap();
    }
    let (mut bob, connected) = Subscription::connect(&mut other, "bob").await;
    assert_eq!(connected.queued, u64::from(SENDS));
    let mut ids = Vec::new();
    for _ in 0..256 {
        ids.push(bob.message().await.text.parse::<u32>().unwrap());
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 256);
}

#[tokio::test]
async fn list_is_paged_and_marked_as_truncated() {
    let server = Server::start_with(
        Rules {
            list_names_max: 600,
            ..RULES
        },
        LIMITS,
    )
    .await;
    let mut client = server.client().await;
    let names: Vec<String> = (0..700).map(|n| format!("{n:060}")).collect();
    join_all(names.iter().map(|name| {
        let mut client = client.clone();
        async move { create(&mut client, name, "").await }
    }))
    .await;
    assert_eq!(
        list(&mut client, ListRequest::default()).await,
        (names[..600].to_vec(), true)
    );
    let some = ListRequest {
        pattern: "01.$".to_owned(),
        login: None,
    };
    let expected: Vec<String> = names
        .iter()
        .filter(|name| &name[58..59] == "1" && &name[57..58] == "0")
        .cloned()
        .collect();
    assert_eq!(list(&mut client, some).await, (expected, false));
    let none = ListRequest {
        pattern: "x".to_owned(),
        login: None,
    };
    assert_eq!(list(&mut client, none).await, (Vec::new(), false));
}

#[tokio::test]
async fn password_is_required_once_it_is_set() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    let set = PasswordRequest {
        user: "bob".to_owned(),
        old: String::new(),
        new: "secret".to_owned(),
        login: None,
    };
    client.password(set).await.unwrap();
    let mut delete = DeleteRequest {
        user: "bob".to_owned(),
        password: String::new(),
        login: None,
    };
    let denied = client.delete(delete.clone()).await.unwrap_err();
    assert_eq!(code(&denied), (Code::PermissionDenied, "denied"));
    delete.password = "guess".to_owned();
    let denied = client.delete(delete.clone()).await.unwrap_err();
    assert_eq!(code(&denied), (Code::PermissionDenied, "denied"));
    delete.password = "secret".to_owned();
    assert!(
        client
            .delete(delete.clone())
            .await
            .unwrap()
            .into_inner()
            .existed
    );
    assert!(!client.delete(delete).await.unwrap().into_inner().existed);
}

#[tokio::test]
async fn call_with_a_refused_login_has_no_effect() {
    let server = Server::start().await;
    let mut client = server.client().await;
    create(&mut client, "bob", "secret").await;
    let (user, password) = ("bob".to_owned(), String::new());
    let login = credentials("bob", "wrong");
    let eve = CreateRequest {
        user: "eve".to_owned(),
        password: password.clone(),
        login: login.clone(),
    };
    assert_eq!(
        code(&client.create(eve).await.unwrap_err()),
        (Code::PermissionDenied, "denied")
    );
    let (old, new) = ("secret".to_owned(), "new".to_owned());
    let set = PasswordRequest {
        user: user.clone(),
        old,
        new,
        login: login.clone(),
    };
    assert_eq!(
        code(&client.password(set).await.unwrap_err()),
        (Code::PermissionDenied, "denied")
    );
    let delete = DeleteRequest {
        user: user.clone(),
        password: "secret".to_owned(),
        login,
    };
    assert_eq!(
        code(&client.delete(delete).await.unwrap_err()),
        (Code::PermissionDenied, "denied")
    );
    let login = credentials("bob", "secret");
    assert_eq!(list(&mut client, ListRequest::default()).await.0, ["bob"]);
    let delete = DeleteRequest {
        user,
        password,
        login,
    };
    assert!(client.delete(delete).await.unwrap().into_inner().existed);
}

#[tokio::test]
async fn required_passwords_need_a_login_for_every_call() {
    let server = Server::start_with(
        Rules {
            require_password: true,
            ..RULES
        },
        LIMITS,
    )
    .await;
    let mut client = server.client().await;
    let open = CreateRequest {
        user: "bob".to_owned(),
        password: String::new(),
        login: None,
    };
    assert_eq!(
        code(&client.create(open).await.unwrap_err()),
        (Code::PermissionDenied, "denied")
    );
    create(&mut client, "bob", "secret").await;

    let denied = client.send(to("bob", "x")).await.unwrap_err();
    assert_eq!(code(&denied), (Code::PermissionDenied, "denied"));
    let login = credentials("bob", "secret");
    client
        .send(SendRequest {
            login: login.clone(),
            ..to("bob", "x")
        })
        .await
        .unwrap();

    let mut pages = client
        .list(ListRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        code(&pages.message().await.unwrap_err()),
        (Code::PermissionDenied, "denied")
    );
    assert_eq!(
        list(
            &mut client,
            ListRequest {
                pattern: String::new(),
                login
            }
        )
        .await
        .0,
        ["bob"]
    );

    let bob = |password: &str| DeleteRequest {
        user: "bob".to_owned(),
        password: password.to_owned(),
        login: None,
    };
    let denied = client.delete(bob("")).await.unwrap_err();
    assert_eq!(code(&denied), (Code::PermissionDenied, "denied"));
    assert!(
        client
            .delete(bob("secret"))
            .await
            .unwrap()
            .into_inner()
            .existed
    );
}
