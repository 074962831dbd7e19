//! `runsc spec`: writes a `config.json` to start from.

use std::fs::OpenOptions;
use std::io::{self, Write};

use serde_json::json;

use super::args::SpecArgs;
use crate::container::{Context, Error, Result};

/// Writes the file; never over one that is there.
pub fn run(args: &SpecArgs) -> Result<i32> {
    if !args.cwd.is_absolute() {
        return Err(Error::Usage(format!("--cwd={}: not an absolute path", args.cwd.display())));
    }
    let path = args.bundle.join("config.json");
    let doing = || format!("make {}", path.display());
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).doing(doing)?;
    file.write_all(document(args).map_err(io::Error::from).doing(doing)?.as_bytes()).doing(doing)?;
    Ok(0)
}

/// The document as text: people read and edit it, so its order is the specification's and not a map's.
fn document(args: &SpecArgs) -> serde_json::Result<String> {
    let words: Vec<String> = args.args.iter().map(serde_json::to_string).collect::<serde_json::Result<_>>()?;
    let network = match &args.netns {
        None => json!({"type": "network"}),
        Some(path) => json!({"type": "network", "path": path}),
    };
    let cwd = serde_json::to_string(&args.cwd)?;
    // The arguments last: they may hold anything, a placeholder's name too.
    let text = TEMPLATE.replace("@NETWORK@", &network.to_string()).replacen("@CWD@", &cwd, 1);
    Ok(text.replacen("@ARGS@", &words.join(",\n            "), 1))
}

const TEMPLATE: &str = r#"{
    "ociVersion": "1.0.0",
    "process": {
        "user": {
            "uid": 0,
            "gid": 0
        },
        "args": [
            @ARGS@
        ],
        "env": [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TERM=xterm"
        ],
        "cwd": @CWD@,
        "capabilities": {
            "bounding": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "effective": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "inheritable": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "permitted": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
        },
        "rlimits": [
            {
                "type": "RLIMIT_NOFILE",
                "hard": 1024,
                "soft": 1024
            }
        ]
    },
    "root": {
        "path": "rootfs",
        "readonly": true
    },
    "hostname": "runsc",
    "mounts": [
        {
            "destination": "/proc",
            "type": "proc",
            "source": "proc"
        },
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs"
        },
        {
            "destination": "/sys",
            "type": "sysfs",
            "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"]
        }
    ],
    "linux": {
        "namespaces": [
            {"type": "pid"},
            @NETWORK@,
            {"type": "ipc"},
            {"type": "uts"},
            {"type": "mount"}
        ]
    }
}
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::{Bundle, Leniency, parse};

    #[test]
    fn what_is_written_can_be_run() {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::create_dir(bundle.path().join("rootfs")).unwrap();
        let args = SpecArgs {
            bundle: bundle.path().into(),
            cwd: "/a \"dir\" ".into(),
            netns: Some("/proc/self/ns/net".into()),
            args: vec!["echo".into(), "a\"b\\@CWD@".into()],
        };
        let text = document(&args).unwrap();
        let bundle = Bundle::new(bundle.path().into(), parse(text.as_bytes()).unwrap(), Leniency::default()).unwrap();
        let process = bundle.spec.process().as_ref().unwrap();
        assert_eq!(process.args().as_ref(), Some(&args.args));
        assert_eq!(process.cwd(), &args.cwd);
        assert_eq!(bundle.network_namespace().and_then(|path| path.to_str()), Some("/proc/self/ns/net"));
        assert!(bundle.root_read_only());
    }

    #[test]
    fn a_file_that_is_there_is_kept() {
        let bundle = tempfile::tempdir().unwrap();
        let args = SpecArgs { bundle: bundle.path().into(), cwd: "/".into(), netns: None, args: vec!["sh".into()] };
        run(&args).unwrap();
        assert!(run(&args).unwrap_err().to_string().contains("exists"));
    }
}
