//! The model, driven by events; and its screens, by the view.

use hark_client::LinkState;
use hark_client::rooms::Joined;
use hark_protocol::message::{RoomEntry, RoomMode};
use hark_protocol::{Code, Delivery, Refusal, Sequence};
use jiff::tz::TimeZone;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyModifiers};

use super::keys::BINDINGS;
use super::*;
use crate::screen::conversation::{Older, Scroll, Status};
use crate::screen::view::view;

/// Noon of 21 November 2026.
const NOON_MS: u64 = 1_795_262_400_000;

fn app() -> App {
    let setting = Setting {
        zone: TimeZone::UTC,
        theme: Theme { is_colored: false },
        server: "hark.test:3000".to_owned(),
        has_password: false,
        password_owner: None,
        aliases: std::collections::BTreeMap::new(),
    };
    let mut app = App::new(setting, (80, 24), NOON_MS);
    let server = "hark.test:3000".into();
    app.update(Event::Link(LinkState::Up { server }));
    app.update(done(Command::Connect(user("amy")), Ok(Done::Connected(0))));
    app
}

fn user(name: &str) -> UserName {
    name.parse().unwrap()
}

fn room(name: &str) -> RoomName {
    name.parse().unwrap()
}

fn done(command: Command, outcome: Result<Done, RequestError>) -> Event {
    Event::Done {
        command,
        typed: TypedSecrets::default(),
        is_quiet: false,
        outcome,
    }
}

fn press(app: &mut App, code: KeyCode, modifiers: KeyModifiers) -> Vec<Action> {
    let key = KeyEvent::new(code, modifiers);
    app.update(Event::Key {
        key,
        is_pasted: false,
    })
}

fn write(app: &mut App, text: &str) {
    for c in text.chars() {
        press(app, KeyCode::Char(c), KeyModifiers::NONE);
    }
}

fn enter(app: &mut App, line: &str) -> Vec<Action> {
    write(app, line);
    press(app, KeyCode::Enter, KeyModifiers::NONE)
}

fn message(room: Option<&str>, sender: &str, number: u64, text: &str) -> Event {
    Event::Received(Received {
        ack: Some(number),
        filed: None,
        is_ignored: false,
        user: user("amy"),
        room: room.map(|room| room.parse().unwrap()),
        delivery: Delivery {
            sequence: Sequence(number),
            sender: Some(user(sender)),
            time_ms: NOON_MS,
            text: text.into(),
        },
    })
}

fn join(app: &mut App, name: &str) {
    enter(app, &format!("/join {name}"));
    let joined = Joined {
        last: Sequence(0),
        held: 0,
    };
    app.update(done(Command::Join(room(name)), Ok(Done::Joined(joined))));
}

/// Draws the state, and returns the rows without trailing spaces.
fn drawn(app: &mut App) -> Vec<String> {
    let (columns, rows) = app.size;
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
    terminal.draw(|frame| view(app, frame)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let row = |y| {
        let cells = (0..columns).map(|x| buffer.cell((x, y)).unwrap().symbol());
        cells.collect::<String>().trim_end().to_owned()
    };
    let rows = (0..rows).map(row).collect();
    app.update(Event::Drawn);
    rows
}

#[track_caller]
fn check_shown(app: &mut App, text: &str) {
    let rows = drawn(app);
    assert!(
        rows.iter().any(|row| row.contains(text)),
        "{text:?} is not in:\n{}",
        rows.join("\n")
    );
}

fn unread(app: &App, name: &str) -> u64 {
    let all = app.conversations.list();
    all.iter().find(|one| one.name() == name).unwrap().unread
}

fn is_rung(actions: &[Action]) -> bool {
    actions.contains(&Action::Bell)
}

#[test]
fn typed_text_goes_to_the_current_conversation() {
    let mut app = app();
    join(&mut app, "#team");
    let actions = enter(&mut app, "hello, team");
    let [
        Action::Send {
            id,
            recipient,
            text,
            ..
        },
    ] = actions.as_slice()
    else {
        panic!("{actions:?}");
    };
    assert_eq!((recipient.as_str(), &**text), ("#team", "hello, team"));
    check_shown(&mut app, "amy hello, team · pending");
    let outcome = Ok(Some(Sequence(7)));
    app.update(Event::Answered {
        id: *id,
        is_room: true,
        outcome,
    });
    check_shown(&mut app, "amy hello, team · stored");
    let actions = app.update(message(Some("#team"), "amy", 7, "hello, team"));
    assert_eq!(actions, [Action::Ack(7)], "the echo is not shown again");
    let team = app.conversations.current();
    assert_eq!(
        team.entries
            .iter()
            .filter(|entry| entry.said().is_some())
            .count(),
        1
    );
}

#[test]
fn refused_message_says_why() {
    let mut app = app();
    enter(&mut app, "/talk bob");
    let actions = enter(&mut app, "hi");
    let [Action::Send { id, .. }] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    let refusal = Refusal::new(Code::NoSuchUser, "there is no user bob");
    app.update(Event::Answered {
        id: *id,
        is_room: false,
        outcome: Err(refusal.into()),
    });
    check_shown(&mut app, "· refused (no-such-user): there is no user");
}

#[test]
fn text_without_recipient_is_kept() {
    let mut app = app();
    assert_eq!(enter(&mut app, "hello"), []);
    assert_eq!(app.input.text(), "hello");
    check_shown(&mut app, "nobody to send to");
}

#[test]
fn unread_messages_are_acknowledged_once_shown() {
    let mut app = app();
    assert!(
        app.update(message(None, "bob", 1, "one"))
            .iter()
            .all(|action| !matches!(action, Action::Ack(_)))
    );
    app.update(message(None, "bob", 2, "two"));
    assert_eq!(app.update(Event::Drawn), []);
    assert_eq!(unread(&app, "bob"), 2);
    check_shown(&mut app, "1 bob          2");
    press(&mut app, KeyCode::Char('1'), KeyModifiers::ALT);
    check_shown(&mut app, "new since 12:00");
    assert_eq!(unread(&app, "bob"), 0);
    app.update(message(None, "bob", 3, "three"));
    assert_eq!(app.update(Event::Drawn), [Action::Ack(3)]);
}

#[test]
fn room_is_marked_as_read_once_shown() {
    let mut app = app();
    join(&mut app, "#team");
    app.update(message(Some("#team"), "bob", 5, "hi"));
    assert_eq!(
        app.update(Event::Drawn),
        [Action::Ack(5), Action::Mark(room("#team"), Sequence(5))]
    );
    app.update(Event::Focused(false));
    app.update(message(Some("#team"), "bob", 6, "still there?"));
    assert_eq!(
        app.update(Event::Drawn),
        [Action::Ack(6)],
        "nobody is looking"
    );
    assert_eq!(app.title(), "(1) hark: #team");
    app.update(Event::Focused(true));
    assert_eq!(
        app.update(Event::Drawn),
        [Action::Mark(room("#team"), Sequence(6))]
    );
    check_shown(&mut app, "new since");
}

#[test]
fn bell_rings_for_persons_and_mentions_at_most_once_a_second() {
    let mut app = app();
    join(&mut app, "#team");
    press(&mut app, KeyCode::Char('0'), KeyModifiers::ALT);
    assert!(!is_rung(&app.update(message(
        Some("#team"),
        "bob",
        1,
        "hello all"
    ))));
    assert!(is_rung(&app.update(message(
        Some("#team"),
        "bob",
        2,
        "hello Amy!"
    ))));
    assert!(
        !is_rung(&app.update(message(None, "bob", 3, "psst"))),
        "within a second"
    );
    app.now_ms += 1_000;
    let actions = app.update(message(None, "bob", 4, "psst"));
    assert!(
        actions.contains(&Action::Notify(
            "bob: psst (and 1 more messages)".to_owned()
        )),
        "{actions:?}"
    );
    app.now_ms += 1_000;
    assert!(
        !is_rung(&app.update(message(Some("#team"), "bob", 5, "amylase"))),
        "no mention"
    );
    enter(&mut app, "/talk bob");
    app.now_ms += 1_000;
    assert!(
        !is_rung(&app.update(message(None, "bob", 6, "here"))),
        "it is being read"
    );
}

#[test]
fn talk_merges_inbox_and_room_of_a_person() {
    let mut app = app();
    let talk = "#=ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    app.update(message(None, "bob", 1, "by inbox"));
    app.update(message(Some(talk), "bob", 2, "by talk"));
    assert_eq!(app.conversations.list().len(), 2);
    press(&mut app, KeyCode::Char('1'), KeyModifiers::ALT);
    check_shown(&mut app, "by talk");
    check_shown(&mut app, "by inbox");
    let actions = enter(&mut app, "answer");
    assert!(
        matches!(actions.as_slice(), [Action::Send { recipient, .. }] if recipient.as_str() == talk)
    );
}

#[test]
fn conversation_of_another_device_is_named_by_its_members() {
    let mut app = app();
    let talk = "#=ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let actions = app.update(message(Some(talk), "amy", 2, "from my phone"));
    let members = Command::Members(room(talk));
    assert!(
        matches!(actions.as_slice(), [Action::Run { command, is_quiet: true, .. }] if *command == members)
    );
    let names = hark_client::handle::Names {
        names: vec![user("amy"), user("bob")],
        is_truncated: false,
    };
    app.update(Event::Done {
        command: members,
        typed: TypedSecrets::default(),
        is_quiet: true,
        outcome: Ok(Done::Listed(names)),
    });
    press(&mut app, KeyCode::Char('1'), KeyModifiers::ALT);
    check_shown(&mut app, "bob: on all devices of both");
}

#[test]
fn rooms_of_the_server_have_their_unread_counts() {
    let mut app = app();
    let entry = |name: &str, unread, last| RoomEntry {
        name: room(name),
        mode: RoomMode::Open,
        members: 3,
        unread,
        last: Sequence(last),
    };
    app.update(Event::Done {
        command: Command::Rooms(None),
        typed: TypedSecrets::default(),
        is_quiet: true,
        outcome: Ok(Done::Rooms(vec![
            entry("#team", Some(4), 9),
            entry("#other", None, 5),
        ])),
    });
    assert_eq!(app.conversations.list().len(), 2, "only the user's rooms");
    app.update(message(Some("#team"), "bob", 9, "counted already"));
    assert_eq!(unread(&app, "#team"), 4);
    app.update(message(Some("#team"), "bob", 10, "new"));
    assert_eq!(unread(&app, "#team"), 5);
    app.update(Event::Seen(room("#team"), Sequence(10)));
    assert_eq!(unread(&app, "#team"), 0);
}

#[test]
fn commands_take_the_current_room() {
    let mut app = app();
    join(&mut app, "#team");
    let command = |actions: Vec<Action>| match actions.into_iter().next() {
        Some(Action::Run { command, .. }) => command,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        command(enter(&mut app, "/invite bob")),
        Command::Invite(room("#team"), user("bob"))
    );
    assert_eq!(
        command(enter(&mut app, "/members")),
        Command::Members(room("#team"))
    );
    assert_eq!(
        command(enter(&mut app, "/members #other")),
        Command::Members(room("#other"))
    );
    assert_eq!(enter(&mut app, "/nonsense"), []);
    check_shown(&mut app, "unknown command \"nonsense\"");
    let actions = enter(&mut app, "//slash");
    assert!(matches!(actions.as_slice(), [Action::Send { text, .. }] if **text == *"/slash"));
}

#[test]
fn deletion_is_asked_for() {
    let mut app = app();
    assert_eq!(enter(&mut app, "/delete amy"), []);
    check_shown(&mut app, "delete the account amy and its messages? y/n");
    assert_eq!(press(&mut app, KeyCode::Char('n'), KeyModifiers::NONE), []);
    enter(&mut app, "/delete amy");
    let actions = press(&mut app, KeyCode::Char('y'), KeyModifiers::NONE);
    assert!(matches!(
        actions.as_slice(),
        [Action::Run {
            command: Command::Delete(_),
            ..
        }]
    ));
}

#[test]
fn denied_command_asks_for_the_password() {
    let mut app = app();
    let denied = || Err(Refusal::new(Code::Denied, "wrong password").into());
    app.update(done(Command::Connect(user("bob")), denied()));
    write(&mut app, "hunter2");
    let rows = drawn(&mut app).join("\n");
    assert!(
        rows.contains("Password for bob:") && !rows.contains("hunter2"),
        "{rows}"
    );
    let actions = press(&mut app, KeyCode::Enter, KeyModifiers::NONE);
    let [Action::Run { command, typed, .. }] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!(*command, Command::Connect(user("bob")));
    assert_eq!(typed.0.password.as_ref().unwrap().expose(), "hunter2");
    app.update(Event::Done {
        command: command.clone(),
        typed: typed.clone(),
        is_quiet: false,
        outcome: denied(),
    });
    assert!(app.overlay.is_none(), "a wrong password is refused");
}

#[test]
fn new_password_is_repeated() {
    let mut app = app();
    enter(&mut app, "/password");
    enter(&mut app, "hunter2");
    check_shown(&mut app, "Repeat the password:");
    enter(&mut app, "hunter3");
    check_shown(&mut app, "the passwords do not match");
    enter(&mut app, "/password");
    enter(&mut app, "hunter2");
    let actions = enter(&mut app, "hunter2");
    let [Action::Run { typed, .. }] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!(typed.0.new_password.as_ref().unwrap().expose(), "hunter2");
    assert!(app.input.is_empty());
}

#[test]
fn scrollback_stays_while_messages_arrive() {
    let mut app = app();
    join(&mut app, "#team");
    for number in 1..=100 {
        app.update(message(
            Some("#team"),
            "bob",
            number,
            &format!("line {number}"),
        ));
    }
    app.update(Event::Drawn);
    press(&mut app, KeyCode::PageUp, KeyModifiers::NONE);
    let before = drawn(&mut app);
    assert!(
        before.iter().any(|row| row.ends_with("line 80"))
            && !before.iter().any(|row| row.ends_with("line 100"))
    );
    app.update(message(Some("#team"), "bob", 101, "line 101"));
    let after = drawn(&mut app);
    let messages = |rows: &[String]| -> Vec<String> {
        let rows = rows.iter().take(20);
        rows.map(|row| row.chars().skip(17).collect()).collect()
    };
    assert_eq!(
        messages(&before),
        messages(&after),
        "reading is not disturbed"
    );
    press(&mut app, KeyCode::PageDown, KeyModifiers::NONE);
    press(&mut app, KeyCode::PageDown, KeyModifiers::NONE);
    check_shown(&mut app, "line 101");
    assert_eq!(app.conversations.current().scroll, Scroll::Bottom);
    app.conversations.current_mut().older = Older::Unknown;
    let actions = press(&mut app, KeyCode::Home, KeyModifiers::ALT);
    assert!(
        actions
            .iter()
            .any(|action| matches!(action, Action::LoadOlder { .. })),
        "{actions:?}"
    );
    check_shown(&mut app, "line 1");
    press(&mut app, KeyCode::Esc, KeyModifiers::NONE);
    check_shown(&mut app, "line 101");
}

#[test]
fn older_messages_are_added_above() {
    let mut app = app();
    join(&mut app, "#team");
    app.update(message(Some("#team"), "bob", 10, "new"));
    let past = |number: u64| Past {
        sender: Some(user("bob")),
        text: format!("old {number}").into(),
        time_ms: NOON_MS - 60_000 * (10 - number),
        position: Some(Position {
            is_room: true,
            number: Sequence(number),
        }),
        status: None,
        missing: None,
        filed: None,
    };
    let page = Page {
        messages: vec![past(10), past(9), past(8)],
        is_end: true,
    };
    app.update(Event::Older {
        place: Place::Room(room("#team")),
        is_of_room: true,
        outcome: Ok(page),
    });
    let rows = drawn(&mut app);
    let shown: Vec<&String> = rows.iter().filter(|row| row.contains("bob")).collect();
    assert!(
        shown[0].ends_with("old 8") && shown[1].ends_with("old 9") && shown[2].ends_with("new"),
        "{rows:?}"
    );
}

#[test]
fn search_jumps_to_a_message() {
    let mut app = app();
    join(&mut app, "#team");
    for number in 1..=200 {
        app.update(message(
            Some("#team"),
            "bob",
            number,
            &format!("number {number}."),
        ));
    }
    enter(&mut app, "/search NUMBER 50.");
    check_shown(&mut app, "  21 Nov 12:00 bob: number 50.");
    press(&mut app, KeyCode::Enter, KeyModifiers::NONE);
    check_shown(&mut app, "bob number 50.");
}

#[test]
fn jump_finds_a_conversation_by_letters() {
    let mut app = app();
    for name in ["#team", "#deploys", "#dev"] {
        join(&mut app, name);
    }
    press(&mut app, KeyCode::Char('k'), KeyModifiers::CONTROL);
    write(&mut app, "dpl");
    check_shown(&mut app, "jump to: dpl");
    press(&mut app, KeyCode::Enter, KeyModifiers::NONE);
    assert_eq!(app.conversations.current().name(), "#deploys");
    press(&mut app, KeyCode::Char('l'), KeyModifiers::ALT);
    assert_eq!(app.conversations.current().name(), "#dev");
}

#[test]
fn draft_belongs_to_its_conversation() {
    let mut app = app();
    join(&mut app, "#team");
    join(&mut app, "#dev");
    write(&mut app, "half");
    press(&mut app, KeyCode::Char('p'), KeyModifiers::CONTROL);
    assert_eq!(app.input.text(), "");
    press(&mut app, KeyCode::Char('n'), KeyModifiers::CONTROL);
    assert_eq!(app.input.text(), "half");
}

#[test]
fn tab_completes_commands_and_names() {
    let mut app = app();
    for name in ["bob", "bobby", "cleo"] {
        app.update(message(None, name, 1, "hi"));
    }
    let tab = |app: &mut App| press(app, KeyCode::Tab, KeyModifiers::NONE);
    write(&mut app, "/sen");
    tab(&mut app);
    assert_eq!(app.input.text(), "/send ");
    write(&mut app, "b");
    tab(&mut app);
    assert_eq!(
        (app.input.text(), app.hint.as_deref()),
        ("/send bob", Some("bob bobby"))
    );
    tab(&mut app);
    tab(&mut app);
    assert_eq!(app.input.text(), "/send bobby");
    assert_eq!(
        app.hint.as_deref(),
        Some("to bobby"),
        "the recipient is shown before sending"
    );
    press(&mut app, KeyCode::Char('u'), KeyModifiers::CONTROL);
    write(&mut app, "ask @cl");
    tab(&mut app);
    assert_eq!(app.input.text(), "ask @cleo ");
}

#[test]
fn tab_in_an_unmarked_paste_is_text() {
    let mut app = app();
    write(&mut app, "/sen");
    let key = KeyEvent::new(KeyCode::Tab, KeyModifiers::NONE);
    app.update(Event::Key {
        key,
        is_pasted: true,
    });
    assert_eq!(app.input.text(), "/sen\t");
}

#[test]
fn paste_of_several_lines_is_one_message() {
    let mut app = app();
    join(&mut app, "#team");
    app.update(Event::Pasted("one\r\ntwo\tx".to_owned()));
    press(&mut app, KeyCode::Enter, KeyModifiers::ALT);
    write(&mut app, "three");
    let actions = press(&mut app, KeyCode::Enter, KeyModifiers::NONE);
    assert!(
        matches!(actions.as_slice(), [Action::Send { text, .. }] if **text == *"one\ntwo\tx\nthree")
    );
}

#[test]
fn every_key_of_the_help_has_an_effect_at_any_size() {
    let help = App::help_lines().join("\n");
    for size in [(10, 3), (20, 5), (80, 24), (300, 100)] {
        let mut app = app();
        join(&mut app, "#team");
        for number in 1..=50 {
            app.update(message(
                Some("#team"),
                "bob",
                number,
                "日本語 e\u{301} שלום 👩‍👩‍👧",
            ));
        }
        app.update(Event::Resized(size.0, size.1));
        for binding in BINDINGS {
            assert!(binding.name.is_empty() || help.contains(binding.name));
            press(&mut app, binding.code, binding.modifiers);
            drawn(&mut app);
            app.overlay = None;
        }
    }
}

#[test]
fn names_that_look_alike_are_marked() {
    let mut app = app();
    app.update(message(None, "bob", 1, "hi"));
    app.update(message(None, "b0b", 2, "hi"));
    check_shown(&mut app, "2 ?b0b");
}

#[test]
fn messages_of_a_flood_stay_bounded() {
    let mut app = app();
    join(&mut app, "#team");
    for number in 1..=10_000 {
        app.update(message(Some("#team"), "bob", number, "x"));
        if number % 50 == 0 {
            app.update(Event::Drawn);
        }
    }
    assert!(app.conversations.current().entries.len() <= super::super::conversation::ENTRIES_MAX);
}

#[test]
fn pending_messages_are_reported_at_the_end() {
    let mut app = app();
    join(&mut app, "#team");
    enter(&mut app, "lost?");
    assert_eq!(
        app.unstored(),
        ["→ #team: lost? … pending (waiting for the server)"]
    );
    let team = app.conversations.current_mut();
    if let Some(Body::Said(said)) = team.entries.back_mut().map(|entry| &mut entry.body) {
        said.status = Some(Status::Stored);
    }
    assert_eq!(app.unstored(), [""; 0]);
}
