//! The real `hark` with several servers. If they share a store, its location
//! moves to the next server when one is killed.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hark_tests::{Authority, FarMachine, Harkd, Terminal, Trial, hark, own_addresses};

/// Transport of `hark`, as environment variables.
type Transport = &'static [(&'static str, &'static str)];

const NATIVE: Transport = &[];
const GRPC: Transport = &[("HARK_GRPC", "true")];

/// Runs the tests below over each transport.
macro_rules! over_both {
    ($($test:ident),+ $(,)?) => {
        mod over_native {
            $(#[test] fn $test() { super::$test(super::NATIVE); })+
        }
        mod over_grpc {
            $(#[test] fn $test() { super::$test(super::GRPC); })+
        }
    };
}

over_both!(
    moving_store_is_read_once_in_order,
    hanging_server_costs_only_its_share,
    each_server_proves_its_own_name,
    chat_shows_the_current_server,
);

/// Number of messages between two moves.
const MESSAGES: usize = 100;

/// Time below which `hark` gives up on an address if there is another one.
const SHARE: Duration = Duration::from_secs(5);

fn list(addresses: &[SocketAddr]) -> String {
    addresses
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

fn command(transport: Transport, servers: &str, state: &Path) -> Command {
    let mut command = hark(state);
    command
        .envs(transport.iter().copied())
        .env("HARK_SERVER", servers);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(transport: Transport, servers: &str, state: &Path, arguments: &[&str]) -> Output {
    command(transport, servers, state)
        .args(arguments)
        .output()
        .unwrap()
}

/// Returns the output of a command, which has to succeed without messages on
/// stderr.
#[track_caller]
fn fine(output: &Output) -> String {
    let notices = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && notices.is_empty(),
        "{}: {notices}",
        output.status
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Waits for the exit of a command.
fn ended(mut child: Child) -> Output {
    // Closes its stdin.
    drop(child.stdin.take());
    child.wait_with_output().unwrap()
}

fn server(address: SocketAddr, store: &Path) -> Harkd {
    Harkd::builder()
        .listen(&address.to_string())
        .store(store)
        .start()
}

fn moving_store_is_read_once_in_order(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let (addresses, store) = (own_addresses(3), folder.path().join("store"));
    let servers = list(&addresses);
    let mut present = server(addresses[1], &store);
    for user in ["amy", "bob"] {
        fine(&run(transport, &servers, folder.path(), &["create", user]));
    }
    // One move for each second of the run.
    let moves_max = Trial::from_env().time.as_secs().max(1) as usize;
    let sent = (moves_max + 1) * MESSAGES;
    let count = sent.to_string();
    let mut listening = command(transport, &servers, folder.path());
    listening
        .args(["--timeout=60", "listen", "bob", "--count", &count])
        .stderr(Stdio::null());
    let mut listening = listening.spawn().unwrap();
    let mut sending = command(transport, &servers, folder.path());
    let mut sending = sending
        .arg("--timeout=60")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = sending.stdin.take().unwrap();
    let typing = std::thread::spawn(move || {
        stdin.write_all(b"login amy\n").unwrap();
        for n in 0..sent {
            stdin
                .write_all(format!("send bob {n}\n").as_bytes())
                .unwrap();
        }
    });
    let answering = std::thread::spawn(|| ended(sending));
    let (mut moves, mut read) = (0, 0);
    for line in BufReader::new(listening.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        assert!(
            line.ends_with(&format!(" {read}")),
            "{read} was to come, and it is {line}"
        );
        read += 1;
        if read % MESSAGES == 0 && moves < moves_max {
            moves += 1;
            present.kill();
            present = server(addresses[(1 + moves) % 3], &store);
        }
    }
    typing.join().unwrap();
    let answers = fine(&answering.join().unwrap());
    assert_eq!(
        answers.lines().filter(|line| *line == "ok").count(),
        sent + 1
    );
    assert_eq!((read, moves), (sent, moves_max));
    assert!(listening.wait().unwrap().success());
    // All messages were acknowledged, and their record is independent of the
    // order of servers.
    let mut other_order = addresses;
    other_order.reverse();
    let connect = || {
        let command = &mut command(transport, &list(&other_order), folder.path());
        let mut hark = command.stdin(Stdio::piped()).spawn().unwrap();
        hark.stdin
            .take()
            .unwrap()
            .write_all(b"connect bob\n")
            .unwrap();
        fine(&ended(hark))
    };
    // Acknowledgements that are lost with their connection cost a redelivery, which
    // is dropped by number and acknowledged.
    if connect() != "ok 0\n" {
        assert_eq!(connect(), "ok 0\n");
    }
    assert_eq!(
        folder.path().join("hark/taken").read_dir().unwrap().count(),
        1
    );
}

fn hanging_server_costs_only_its_share(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let addresses = own_addresses(3);
    let (gone, hanging) = (
        addresses[0],
        server(addresses[1], &folder.path().join("hanging")),
    );
    let there = server(addresses[2], &folder.path().join("there"));
    let start = Instant::now();
    let said = run(
        transport,
        &list(&[gone, there.address()]),
        folder.path(),
        &["ping"],
    );
    assert_eq!(fine(&said), "ok\n");
    assert!(start.elapsed() < SHARE);
    hanging.signal("STOP");
    let said = run(
        transport,
        &list(&[hanging.address(), there.address()]),
        folder.path(),
        &["ping"],
    );
    assert_eq!(fine(&said), "ok\n");
    let neither = list(&[gone, hanging.address()]);
    let said = run(transport, &neither, folder.path(), &["--timeout=1", "ping"]);
    assert_eq!(said.status.code(), Some(3));
    let why = String::from_utf8(said.stderr).unwrap();
    assert_eq!(
        why,
        format!("hark: not sent: cannot reach {neither} within 1 s\n")
    );
}

fn each_server_proves_its_own_name(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let certificates =
        [["localhost"], ["127.0.0.1"]].map(|names| Arc::new(Authority::trusted().sign(&names)));
    let [mut first, second] = certificates
        .each_ref()
        .map(|own| Harkd::builder().certificate(Some(own)).start());
    let port = |server: &Harkd| server.address().port();
    let (first_port, second_port) = (port(&first), port(&second));
    let authority = certificates[0].authority();
    let arguments = ["--ca", authority.to_str().unwrap(), "create", "amy"];
    // Each server under a name in its certificate.
    let both = format!("localhost:{first_port},127.0.0.1:{second_port}");
    fine(&run(transport, &both, folder.path(), &arguments));
    first.kill();
    fine(&run(transport, &both, folder.path(), &arguments));
    // The second server has an account of that name, so it was used.
    let said = run(
        transport,
        &format!("127.0.0.1:{second_port}"),
        folder.path(),
        &arguments,
    );
    assert_eq!(said.status.code(), Some(1), "{said:?}");

    let first = first.restart();
    let one = format!("127.0.0.1:{},127.0.0.1:{second_port}", port(&first));
    let delete = ["--ca", authority.to_str().unwrap(), "delete", "amy"];
    assert_eq!(
        fine(&run(transport, &one, folder.path(), &delete)),
        "ok deleted\n"
    );
    assert_eq!(
        fine(&run(transport, &one, folder.path(), &delete)),
        "ok absent\n"
    );
    let none = format!("127.0.0.1:{},localhost:{second_port}", port(&first));
    let start = Instant::now();
    let said = run(transport, &none, folder.path(), &delete);
    let why = String::from_utf8_lossy(&said.stderr);
    assert!(
        why.contains("certificate is not valid for localhost, only for 127.0.0.1"),
        "{why}"
    );
    assert!(start.elapsed() < SHARE, "waiting does not help");
}

fn chat_shows_the_current_server(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let (addresses, store) = (own_addresses(2), folder.path().join("store"));
    let [first, second] = [addresses[0], addresses[1]];
    let mut present = server(first, &store);
    let servers = list(&addresses);
    let mut variables = transport.to_vec();
    variables.push(("HARK_SERVER", &servers));
    let mut chat = Terminal::open(first, folder.path(), &variables);
    chat.wait_for(&format!("* connected to {first}"));
    chat.wait_for_prompt(&format!("{first}> "));
    chat.enter("create bob", "bob was created");
    chat.enter("connect bob", "no messages are waiting");
    present.kill();
    // The next server may have refused before the loss of the first is shown.
    chat.wait_for("* no connection to ");
    chat.wait_for_prompt(&format!(
        "bob@{:width$}> ",
        "(offline)",
        width = first.to_string().len()
    ));
    let _present = server(second, &store);
    chat.wait_for(&format!("* connected to {second}"));
    chat.wait_for_prompt(&format!("bob@{second}> "));
    chat.enter("send bob hello", "bob: hello");
}

#[test]
fn client_leaves_and_finds_a_cut_off_server() {
    let test = "client_leaves_and_finds_a_cut_off_server";
    let Some(far) = FarMachine::of_test(module_path!(), test) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let open = ["--allow-plaintext", "--allow-open-accounts"];
    let there = Harkd::builder()
        .args(open)
        .listen(&format!("{}:0", FarMachine::FAR_ADDRESS));
    let there = there.run_by(far.enter()).start();
    let here = Harkd::start();
    let servers = list(&[there.address(), here.address()]);
    let create = || run(NATIVE, &servers, folder.path(), &["create", "amy"]);
    fine(&create());
    far.cut();
    // The near server does not have the account yet.
    fine(&create());
    far.mend();
    let said = create();
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    let delete = ["delete", "amy"];
    assert_eq!(
        fine(&run(
            NATIVE,
            &there.address().to_string(),
            folder.path(),
            &delete
        )),
        "ok deleted\n"
    );
}

#[test]
fn log_is_of_the_first_reachable_server() {
    let folder = tempfile::tempdir().unwrap();
    let gone = own_addresses(1)[0];
    let server = Harkd::builder().arg("--watch-logs=loopback").start();
    let mut logs = command(NATIVE, &list(&[gone, server.address()]), folder.path());
    let mut logs = logs.arg("logs").spawn().unwrap();
    let mut line = String::new();
    BufReader::new(logs.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, format!("hark: the log of {}\n", server.address()));
    logs.kill().unwrap();
    logs.wait().unwrap();
}
