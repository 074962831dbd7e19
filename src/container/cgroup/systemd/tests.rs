//! The manager's side of things, played by a thread.

use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::container::dbus::{Kind, peer};

/// A systemd that answers calls by a script: each is expected, with its answer. Signals go before the answer.
struct Fake {
    directory: TempDir,
    server: JoinHandle<Vec<Message>>,
}

/// What is expected and what is done then.
struct Step(&'static str, Answer);

enum Answer {
    Text(&'static str),
    Object,
    /// A job, with its result.
    Job(&'static str),
    Nothing,
    Error(&'static str),
}

impl Fake {
    fn new(steps: Vec<Step>) -> Fake {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("private")).unwrap();
        let first = [Step("Get", Answer::Text("252.39-1~deb12u1")), Step("Get", Answer::Text("/"))];
        let steps: Vec<Step> = first.into_iter().chain(steps).collect();
        let server = thread::spawn(move || {
            let mut peer = peer::Peer::accept(listener.accept().unwrap().0).unwrap();
            let mut calls = Vec::new();
            for Step(member, answer) in steps {
                let call = peer.receive().unwrap().expect("it ended before its time");
                assert_eq!(call.member, member, "{call:?}");
                assert_eq!(call.destination, SYSTEMD);
                serve(&mut peer, &call, answer);
                calls.push(call);
            }
            calls
        });
        Fake { directory, server }
    }

    fn connect(&self) -> Manager {
        Manager::connect_to(&self.directory.path().join("private"), Via::Direct).unwrap()
    }

    /// The calls after those of the connection.
    fn calls(self) -> Vec<Message> {
        self.server.join().unwrap().split_off(2)
    }
}

fn serve(peer: &mut peer::Peer, call: &Message, answer: Answer) {
    match answer {
        Answer::Text(text) => peer.answer(call, vec![Value::str(text).variant()]),
        Answer::Object => peer.answer(call, vec![Value::Path("/unit/x".into())]),
        Answer::Nothing => peer.answer(call, vec![]),
        Answer::Error(name) => peer.refuse(call, name, "no"),
        Answer::Job(result) => {
            let removed = |job: &str, result: &str| {
                vec![Value::U32(1), Value::Path(job.into()), Value::str("x.scope"), Value::str(result)]
            };
            let signal = |body| Message {
                kind: Kind::Signal,
                path: OBJECT.into(),
                interface: MANAGER.into(),
                member: "JobRemoved".into(),
                body,
                ..Message::default()
            };
            // Another's comes first.
            peer.send(signal(removed("/job/1", "failed"))).unwrap();
            peer.send(signal(removed("/job/2", result))).unwrap();
            peer.answer(call, vec![Value::Path("/job/2".into())])
        }
    }
    .unwrap();
}

fn unit(made: bool) -> Unit {
    Unit { name: "x.scope".into(), description: "runsc container c1".into(), made }
}

#[test]
fn a_scope_is_made_with_its_processes() {
    let fake = Fake::new(vec![
        Step("StartTransientUnit", Answer::Job("done")),
        Step("GetUnit", Answer::Object),
        Step("Get", Answer::Text("/system.slice/x.scope")),
    ]);
    let mut manager = fake.connect();
    assert_eq!((manager.version, manager.root.as_str()), (252, ""));
    manager.start("x.scope", &[("Delegate".into(), Value::Bool(true))], &[7, 8]).unwrap();
    assert_eq!(manager.control_group("x.scope").unwrap(), Path::new("/system.slice/x.scope"));
    let calls = fake.calls();
    let property = |name: &str, value: Value| Value::Struct(vec![Value::str(name), value.variant()]);
    let pids = Value::Array("u".into(), vec![Value::U32(7), Value::U32(8)]);
    let properties = vec![property("Delegate", Value::Bool(true)), property("PIDs", pids)];
    let expected = [
        Value::str("x.scope"),
        Value::str("replace"),
        Value::Array("(sv)".into(), properties),
        Value::Array("(sa(sv))".into(), vec![]),
    ];
    assert_eq!(calls[0].body, expected);
    assert_eq!((calls[0].path.as_str(), calls[0].interface.as_str()), (OBJECT, MANAGER));
    assert_eq!(calls[2].body, [Value::str("org.freedesktop.systemd1.Scope"), Value::str("ControlGroup")]);
}

#[test]
fn a_unit_that_has_ended_makes_room() {
    let fake = Fake::new(vec![
        Step("StartTransientUnit", Answer::Error(UNIT_EXISTS)),
        Step("GetUnit", Answer::Object),
        Step("Get", Answer::Text("failed")),
        Step("ResetFailedUnit", Answer::Nothing),
        Step("StartTransientUnit", Answer::Job("done")),
    ]);
    fake.connect().start("x.scope", &[], &[7]).unwrap();
    fake.calls();
}

#[test]
fn a_unit_in_use_and_a_job_that_fails_are_errors() {
    let fake = Fake::new(vec![
        Step("StartTransientUnit", Answer::Error(UNIT_EXISTS)),
        Step("GetUnit", Answer::Object),
        Step("Get", Answer::Text("active")),
    ]);
    let error = fake.connect().start("x.scope", &[], &[7]).unwrap_err();
    assert_eq!(error.to_string(), "make the unit x.scope: no");
    fake.calls();
    let steps = vec![Step("StartTransientUnit", Answer::Job("failed")), Step("ResetFailedUnit", Answer::Nothing)];
    let fake = Fake::new(steps);
    let error = fake.connect().start("x.scope", &[], &[7]).unwrap_err();
    assert_eq!(error.to_string(), "make the unit x.scope: systemd says \"failed\"");
    fake.calls();
}

#[test]
fn a_scope_is_stopped_and_forgotten() {
    let steps = vec![Step("StopUnit", Answer::Job("done")), Step("ResetFailedUnit", Answer::Error(NO_SUCH_UNIT))];
    let fake = Fake::new(steps);
    fake.connect().stop(&unit(true)).unwrap();
    assert_eq!(fake.calls()[0].body, [Value::str("x.scope"), Value::str("replace")]);
    let gone = vec![Step("StopUnit", Answer::Error(NO_SUCH_UNIT)), Step("ResetFailedUnit", Answer::Nothing)];
    let fake = Fake::new(gone);
    fake.connect().stop(&unit(true)).unwrap();
    fake.calls();
}

#[test]
fn one_that_may_have_been_made_is_stopped_if_it_is_the_containers() {
    let look = |description| [Step("GetUnit", Answer::Object), Step("Get", Answer::Text(description))];
    let mut steps: Vec<Step> = look("runsc container c1").into();
    steps.extend([Step("StopUnit", Answer::Job("done")), Step("ResetFailedUnit", Answer::Nothing)]);
    let fake = Fake::new(steps);
    fake.connect().stop(&unit(false)).unwrap();
    fake.calls();
    let fake = Fake::new(look("libcontainer container c1").into());
    fake.connect().stop(&unit(false)).unwrap();
    fake.calls();
    let fake = Fake::new(vec![Step("GetUnit", Answer::Error(NO_SUCH_UNIT))]);
    fake.connect().stop(&unit(false)).unwrap();
    fake.calls();
}

#[test]
fn limits_are_changed_until_the_unit_goes() {
    let fake = Fake::new(vec![Step("SetUnitProperties", Answer::Nothing)]);
    let mut manager = fake.connect();
    manager.set("x.scope", vec![]).unwrap();
    manager.set("x.scope", vec![("TasksMax".into(), Value::U64(5))]).unwrap();
    let list = Value::Array("(sv)".into(), vec![Value::Struct(vec![Value::str("TasksMax"), Value::U64(5).variant()])]);
    assert_eq!(fake.calls()[0].body, [Value::str("x.scope"), Value::Bool(true), list]);
}

struct V2;

impl Controllers for V2 {
    fn is_v2(&self, _controller: &str) -> bool {
        true
    }
}

#[test]
fn what_a_unit_is_made_with() {
    let spec = json!({
        "ociVersion": "1.0.0",
        "annotations": {"org.systemd.property.TimeoutStopSec": "5"},
        "linux": {"cgroupsPath": "a.slice:b:c", "resources": {
            "memory": {"limit": 1 << 26},
            "devices": [{"allow": false, "access": "rwm"}],
        }},
    });
    let mut spec: Spec = serde_json::from_value(spec).unwrap();
    let mut planned = Unit::planned(&Name::parse(Some(Path::new("a.slice:b:c")), "c1").unwrap(), "c1");
    let all = properties(&mut planned, "a.slice", &spec, 252, &V2).unwrap();
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    let expected = "Description Slice Delegate MemoryAccounting CPUAccounting IOAccounting TasksAccounting \
                    DefaultDependencies MemoryMax DevicePolicy DeviceAllow TimeoutStopUSec";
    assert_eq!(names.join(" "), expected);
    assert_eq!(all[0].1, Value::str("runsc container c1"));
    assert_eq!(all[1].1, Value::str("a.slice"));
    // The operator's own description is what it is known by.
    let own = [("org.systemd.property.Description".to_owned(), "'mine'".to_owned())];
    spec.set_annotations(Some(own.into()));
    properties(&mut planned, "a.slice", &spec, 252, &V2).unwrap();
    assert_eq!(planned.description, "mine");
    let bad = [("org.systemd.property.Wants".to_owned(), "a.service".to_owned())];
    spec.set_annotations(Some(bad.into()));
    let error = properties(&mut planned, "a.slice", &spec, 252, &V2).unwrap_err().to_string();
    assert!(error.starts_with("annotations[\"org.systemd.property.Wants\"]: "), "{error}");
}

#[test]
fn releases() {
    assert_eq!(
        ["252.39-1~deb12u1", "v256", "249 (249.11-0ubuntu3)", ""].map(release),
        [Some(252), Some(256), Some(249), None]
    );
}

#[test]
fn without_systemd_it_is_one_line() {
    let socket = tempfile::tempdir().unwrap().path().join("none");
    let failure = Manager::connect_to(&socket, Via::Direct).err().unwrap();
    assert_eq!(failure.to_string(), "No such file or directory");
}
