//! `runsc features`: what this runtime can do, for those who choose among runtimes:
//! <https://github.com/opencontainers/runtime-spec/blob/main/features.md>.

use serde_json::{Value, json};

use crate::container::Result;
use crate::container::spec::MAX_VERSION;

/// Prints the document.
pub fn run() -> Result<i32> {
    super::print(&format!("{:#}\n", document()))?;
    Ok(0)
}

fn document() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": MAX_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "capabilities": super::do_command::CAPABILITIES,
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true},
            "seccomp": {"enabled": false},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": false}},
        },
        "annotations": {
            "org.runsc.version": env!("CARGO_PKG_VERSION"),
        },
    })
}

/// Those of `mounts[].options` that have an effect.
const MOUNT_OPTIONS: &[&str] = &["bind", "dev", "exec", "nodev", "noexec", "nosuid", "rbind", "ro", "rw", "suid"];

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Features;

    #[test]
    fn it_is_the_specifications_document() {
        let features: Features = serde_json::from_value(document()).unwrap();
        assert_eq!(features.oci_version_max(), MAX_VERSION);
        let linux = features.linux().as_ref().unwrap();
        assert_eq!(linux.cgroup().as_ref().unwrap().v2(), &Some(true));
    }
}
