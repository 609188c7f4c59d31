//! A machine that is dropped takes everything with it.

use std::rc::Rc;

use hark_node::{Machine, Node, Responder};
use serde_json::json;

use crate::harness::{Ask, INIT, SEED, line, ms};

/// The program's state, which may hold handles to the node.
#[derive(Default)]
struct State {
    counted: Option<Counted>,
    node: Option<Node<State>>,
    responders: Vec<Responder>,
}

/// Alive as long as something holds it.
type Counted = Rc<()>;

fn program(node: &Node<State>, alive: &Counted) {
    node.state().counted = Some(Rc::clone(alive));
    node.state().node = Some(node.clone());

    let (held, own) = (Rc::clone(alive), node.clone());
    node.handle("sleep", async move |node: Node<State>, _: Ask| {
        let _held = (Rc::clone(&held), own.clone());
        node.sleep(ms(1_000)).await;
        Ok(())
    });
    let held = Rc::clone(alive);
    node.handle("call", async move |node: Node<State>, _: Ask| {
        let _held = Rc::clone(&held);
        node.call::<()>("n2", "ask", &()).await
    });
    let held = Rc::clone(alive);
    node.receive("rpc", async move |node: Node<State>, request: Ask| {
        node.state().responders.push(request.responder);
        let (held, own) = (Rc::clone(&held), node.clone());
        node.rpc("n2", "ask", &(), move |_, _| drop((held, own)))
            .unwrap();
    });
    let (held, own) = (Rc::clone(alive), node.clone());
    node.every(ms(1), async move |_| {
        let _held = (Rc::clone(&held), own.clone());
    });
    let (held, own) = (Rc::clone(alive), node.clone());
    node.on_init(async move |node: Node<State>| {
        node.spawn(async move {
            let _held = (held, own);
            std::future::pending::<()>().await;
        });
    });
}

#[track_caller]
fn check(drive: impl FnOnce(&mut Machine)) {
    let alive = Counted::default();
    let mut machine = Machine::new(|node: &Node<State>| program(node, &alive), SEED);
    drive(&mut machine);
    assert!(Rc::strong_count(&alive) > 1);
    drop(machine);
    assert_eq!(Rc::strong_count(&alive), 1);
}

fn asked(machine: &mut Machine) {
    machine.handle_line(ms(0), INIT.as_bytes());
    for kind in ["sleep", "call", "rpc"] {
        machine.handle_line(
            ms(0),
            line("c1", &json!({"type": kind, "msg_id": 1})).as_bytes(),
        );
    }
    assert_eq!(machine.pending(), 2);
}

#[test]
fn a_machine_that_never_ran_leaves_nothing_behind() {
    check(|_| ());
}

#[test]
fn a_machine_that_is_dropped_under_way_leaves_nothing_behind() {
    check(asked);
    check(|machine| {
        asked(machine);
        machine.handle_timeout(ms(100));
    });
}

#[test]
fn a_machine_that_has_ended_leaves_nothing_behind() {
    check(|machine| {
        asked(machine);
        machine.handle_end(ms(1));
        machine.handle_timeout(ms(60_000));
        assert_eq!(machine.next_timeout(), None);
    });
}

#[test]
fn a_handle_that_outlives_its_machine_keeps_nothing_alive() {
    let alive = Counted::default();
    let mut outliving = None;
    let mut machine = Machine::new(
        |node: &Node<State>| {
            program(node, &alive);
            outliving = Some(node.clone());
        },
        SEED,
    );
    asked(&mut machine);
    drop(machine);
    let node = outliving.unwrap();
    assert_eq!(node.pending(), 0);
    let held = (Rc::clone(&alive), node.clone());
    node.rpc("n2", "ask", &(), move |_, _| drop(held)).unwrap();
    assert_eq!((node.pending(), Rc::strong_count(&alive)), (0, 1));
}
