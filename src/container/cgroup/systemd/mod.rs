//! Cgroups that systemd makes, `--systemd-cgroup`: a transient scope for each container, as runc has it,
//! <https://systemd.io/CGROUP_DELEGATION>.
//!
//! ```text
//! plan      name and slice of the unit; is it free?
//! enter     StartTransientUnit with the sandbox's processes ─▶ its cgroup; what systemd does not manage is made beside it
//! update    SetUnitProperties, then the control files
//! destroy   StopUnit, ResetFailedUnit
//! ```
//!
//! A scope cannot be without processes: so it is made once the sandbox's are there, which wait to begin.

mod annotations;
mod devices;
mod name;
mod properties;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{LinuxResources, Spec};
use serde::{Deserialize, Serialize};

use crate::container::dbus::{Connection, Failure, Message, Method, Value};
use crate::container::error::{Error, Result};

pub use annotations::PREFIX as ANNOTATION_PREFIX;
pub(super) use name::Name;
pub(super) use properties::{Controllers, Property};

/// Where systemd listens: its own socket, then the bus.
const SOCKETS: [(&str, Via); 2] = [("/run/systemd/private", Via::Direct), ("/run/dbus/system_bus_socket", Via::Bus)];

/// The longest that systemd may take for one thing.
const PATIENCE: Duration = Duration::from_secs(30);

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const OBJECT: &str = "/org/freedesktop/systemd1";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

/// A container's scope; kept with its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unit {
    /// `docker-0123.scope`.
    pub name: String,
    /// By which one that a command has made just before it was killed is known.
    pub description: String,
    /// Whether it has been made.
    pub made: bool,
}

impl Unit {
    /// The one of `id`, which is not there yet.
    pub fn planned(name: &Name, id: &str) -> Unit {
        Unit { name: name.unit.clone(), description: format!("runsc container {id}"), made: false }
    }
}

/// What a container's unit is made with, but for its processes.
pub(super) fn properties(
    unit: &mut Unit,
    slice: &str,
    spec: &Spec,
    version: u32,
    controllers: &impl Controllers,
) -> Result<Vec<Property>> {
    let own = annotations::properties(spec).map_err(Error::Usage)?;
    if let Some((_, Value::Str(text))) = own.iter().rev().find(|(name, _)| name == "Description") {
        unit.description.clone_from(text);
    }
    let flag = |name: &str, on: bool| (name.to_owned(), Value::Bool(on));
    let mut all = vec![
        ("Description".to_owned(), Value::str(unit.description.clone())),
        ("Slice".to_owned(), Value::str(slice)),
        // Its cgroup is the runtime's to manage.
        flag("Delegate", true),
        // Without it no cgroup of the controller is made.
        flag("MemoryAccounting", true),
        flag("CPUAccounting", true),
        flag(if controllers.is_v2("blkio") { "IOAccounting" } else { "BlockIOAccounting" }, true),
        flag("TasksAccounting", true),
        // It does not wait for the basic system, and need not be stopped before a shutdown.
        flag("DefaultDependencies", false),
    ];
    if let Some(resources) = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()) {
        all.extend(limits(resources, version, controllers)?);
    }
    all.extend(own);
    Ok(all)
}

/// The properties of limits.
pub(super) fn limits(
    resources: &LinuxResources,
    version: u32,
    controllers: &impl Controllers,
) -> Result<Vec<Property>> {
    let mut all = properties::of(resources, version, controllers)?;
    all.extend(devices::properties(resources.devices().as_deref().unwrap_or_default(), version));
    Ok(all)
}

/// How systemd is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Via {
    /// It is the peer.
    Direct,
    /// A bus passes on.
    Bus,
}

/// A connection to systemd's manager.
pub(super) struct Manager {
    connection: Connection,
    /// Its release: 252.
    pub version: u32,
    /// The cgroup that all of its slices are in, without a slash at the end: empty for the root.
    pub root: String,
}

impl Manager {
    /// Connects to the systemd that runs.
    pub fn connect() -> Result<Manager> {
        let mut problem = None;
        for (socket, via) in SOCKETS {
            match Manager::connect_to(Path::new(socket), via) {
                Ok(manager) => return Ok(manager),
                // The first is the one to tell.
                Err(failure) => problem.get_or_insert(format!("{socket}: {failure}")),
            };
        }
        Err(failed("--systemd-cgroup: systemd does not run here, or does not answer", problem.unwrap_or_default()))
    }

    fn connect_to(socket: &Path, via: Via) -> std::result::Result<Manager, Failure> {
        let mut connection = Connection::connect(socket, PATIENCE, "JobRemoved")?;
        if via == Via::Bus {
            connection.join_bus(SYSTEMD, MANAGER)?;
        }
        let mut manager = Manager { connection, version: 0, root: String::new() };
        if via == Via::Bus {
            // On its own socket it tells everything to everyone.
            manager.call("Subscribe", vec![])?;
        }
        let version = manager.property(OBJECT, MANAGER, "Version")?;
        manager.version = release(&version).ok_or(Failure::Protocol(format!("unknown release {version:?}")))?;
        manager.root = manager.property(OBJECT, MANAGER, "ControlGroup")?.trim_end_matches('/').to_owned();
        Ok(manager)
    }

    /// A method of the manager.
    fn call(&mut self, member: &str, body: Vec<Value>) -> std::result::Result<Vec<Value>, Failure> {
        let method = Method { destination: SYSTEMD, path: OBJECT, interface: MANAGER, member };
        self.connection.call(method, body)
    }

    /// A property that is text.
    fn property(&mut self, path: &str, interface: &str, name: &str) -> std::result::Result<String, Failure> {
        let interface_of_get = "org.freedesktop.DBus.Properties";
        let method = Method { destination: SYSTEMD, path, interface: interface_of_get, member: "Get" };
        let body = vec![Value::str(interface), Value::str(name)];
        let value = self.connection.call(method, body)?.into_iter().next().map(Value::into_inner);
        match value.as_ref().and_then(Value::as_str) {
            Some(text) => Ok(text.to_owned()),
            None => Err(Failure::Protocol(format!("{name} is not text: {value:?}"))),
        }
    }

    /// The object of a unit that is there.
    fn object(&mut self, unit: &str) -> std::result::Result<Option<String>, Failure> {
        match self.call("GetUnit", vec![Value::str(unit)]) {
            Ok(body) => Ok(body.first().and_then(Value::as_str).map(str::to_owned)),
            Err(failure) if failure.is(NO_SUCH_UNIT) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// A property of a unit, if that is there.
    fn of_unit(&mut self, unit: &str, interface: &str, name: &str) -> std::result::Result<Option<String>, Failure> {
        let Some(object) = self.object(unit)? else { return Ok(None) };
        match self.property(&object, &format!("{SYSTEMD}.{interface}"), name) {
            Ok(text) => Ok(Some(text)),
            // It went meanwhile.
            Err(failure) if failure.is(NO_SUCH_UNIT) || failure.is("org.freedesktop.DBus.Error.UnknownObject") => {
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Whether a name is in use by a unit that is more than a memory.
    pub fn is_in_use(&mut self, unit: &str) -> Result<bool> {
        let state = self.of_unit(unit, "Unit", "ActiveState").map_err(|failure| failed(&look(unit), failure))?;
        Ok(state.is_some_and(|state| state != "inactive" && state != "failed"))
    }

    /// Makes a scope with these processes. A unit of the name that has failed is forgotten first.
    pub fn start(&mut self, unit: &str, properties: &[Property], processes: &[i32]) -> Result<()> {
        /// One that has ended goes a moment later: 1 ms, 2 ms, … 0.5 s.
        const TRIES: u32 = 10;
        let pids = processes.iter().map(|&pid| Value::U32(pid as u32)).collect();
        let pids = ("PIDs".to_owned(), Value::Array("u".into(), pids));
        let all = properties.iter().chain([&pids]).cloned();
        let arguments = vec![
            Value::str(unit),
            // A job that there is already gives way.
            Value::str("replace"),
            list(all),
            Value::Array("(sa(sv))".into(), vec![]),
        ];
        let doing = || format!("make the unit {unit}");
        for attempt in 0..TRIES {
            match self.job("StartTransientUnit", arguments.clone()) {
                Ok(result) if result == "done" => return Ok(()),
                Ok(result) => {
                    self.forget(unit);
                    return Err(failed(&doing(), format!("systemd says {result:?}")));
                }
                Err(failure) if failure.is(UNIT_EXISTS) && !self.is_in_use(unit)? => {
                    self.forget(unit);
                    std::thread::sleep(Duration::from_millis(1 << attempt));
                }
                Err(failure) => return Err(failed(&doing(), failure)),
            }
        }
        Err(failed(&doing(), "a unit of that name has ended and does not go"))
    }

    /// The cgroup of a scope.
    pub fn control_group(&mut self, unit: &str) -> Result<PathBuf> {
        let group = self.of_unit(unit, "Scope", "ControlGroup").map_err(|failure| failed(&look(unit), failure))?;
        match group.filter(|group| group.starts_with('/')) {
            Some(group) => Ok(group.into()),
            None => Err(failed(&look(unit), "it has no cgroup")),
        }
    }

    /// Changes properties of a unit until it goes.
    pub fn set(&mut self, unit: &str, properties: Vec<Property>) -> Result<()> {
        if properties.is_empty() {
            return Ok(());
        }
        let at_run_time = Value::Bool(true);
        let arguments = vec![Value::str(unit), at_run_time, list(properties.into_iter())];
        let set = self.call("SetUnitProperties", arguments);
        set.map(drop).map_err(|failure| failed(&format!("set properties of the unit {unit}"), failure))
    }

    /// Ends a scope. One that is gone is fine, and one that only might have been made is left alone if it is another's.
    pub fn stop(&mut self, unit: &Unit) -> Result<()> {
        let doing = || format!("stop the unit {}", unit.name);
        let fail = |failure| failed(&doing(), failure);
        if !unit.made
            && self.of_unit(&unit.name, "Unit", "Description").map_err(fail)?.as_ref() != Some(&unit.description)
        {
            return Ok(());
        }
        let outcome = match self.job("StopUnit", vec![Value::str(unit.name.clone()), Value::str("replace")]) {
            Ok(result) if result == "done" => Ok(()),
            Err(failure) if failure.is(NO_SUCH_UNIT) => Ok(()),
            Ok(result) => match self.is_in_use(&unit.name) {
                Ok(false) => Ok(()),
                _ => Err(failed(&doing(), format!("systemd says {result:?}"))),
            },
            Err(failure) => Err(fail(failure)),
        };
        self.forget(&unit.name);
        outcome
    }

    /// Lets go of a unit that has failed.
    fn forget(&mut self, unit: &str) {
        match self.call("ResetFailedUnit", vec![Value::str(unit)]) {
            Err(failure) if !failure.is(NO_SUCH_UNIT) => log::debug!("systemd: reset {unit}: {failure}"),
            _ => {}
        }
    }

    /// Calls a method that makes a job, and waits for its end: `done`, `failed`, `canceled`, `timeout`, …
    fn job(&mut self, member: &str, arguments: Vec<Value>) -> std::result::Result<String, Failure> {
        let body = self.call(member, arguments)?;
        let Some(Value::Path(job)) = body.first() else {
            return Err(Failure::Protocol(format!("{member} returns no job: {body:?}")));
        };
        // Its number, the job, the unit, the result.
        let of_job = |signal: &Message| signal.body.get(1).and_then(Value::as_str) == Some(job);
        let signal = self.connection.wait_signal(of_job)?;
        let result = signal.body.get(3).and_then(Value::as_str).map(str::to_owned);
        result.ok_or_else(|| Failure::Protocol("JobRemoved has no result".into()))
    }
}

/// `a(sv)`.
fn list(properties: impl Iterator<Item = Property>) -> Value {
    let one = |(name, value): Property| Value::Struct(vec![Value::Str(name), value.variant()]);
    Value::Array("(sv)".into(), properties.map(one).collect())
}

fn look(unit: &str) -> String {
    format!("look at the unit {unit}")
}

fn failed(doing: &str, problem: impl std::fmt::Display) -> Error {
    Error::Systemd { doing: doing.to_owned(), problem: problem.to_string() }
}

/// `252` of `252.39-1~deb12u1` or `v252`.
fn release(version: &str) -> Option<u32> {
    let digits = version.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}
