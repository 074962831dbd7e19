//! `runsc features`: what this runtime can do, for those who choose among runtimes:
//! <https://github.com/opencontainers/runtime-spec/blob/main/features.md>.

use serde_json::{Value, json};

use crate::container::Result;
use crate::container::cgroup::ANNOTATION_PREFIX;
use crate::container::spec::MAX_VERSION;
use crate::sentry::boot::mounts::options;

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
        "mountOptions": options::known(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "capabilities": super::do_command::CAPABILITIES,
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD",
                    "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
                    "SCMP_CMP_NE",
                ],
                "archs": ["SCMP_ARCH_X86_64"],
                "knownFlags": SECCOMP_FLAGS,
                "supportedFlags": SECCOMP_FLAGS,
            },
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": false}},
        },
        "annotations": {
            "org.runsc.version": env!("CARGO_PKG_VERSION"),
        },
        // By these a container's owner reaches systemd.
        "potentiallyUnsafeConfigAnnotations": [ANNOTATION_PREFIX],
    })
}

/// Those of `linux.seccomp.flags` that are taken.
const SECCOMP_FLAGS: [&str; 3] =
    ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"];

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
