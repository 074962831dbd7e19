//! Images that are made to harm whoever runs them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::stat::Mode;
use serde_json::{Value, json};

use crate::place::Place;
use crate::watched;

/// A root directory with this host's programs, to be changed in place.
fn image(root: &Path) {
    for name in ["usr", "etc", "proc", "tmp"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    for name in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), root.join(name)).unwrap();
    }
}

fn run(config: &mut Value, root: &Path, script: &str) {
    config["process"]["args"] = json!(["/bin/sh", "-c", script]);
    config["root"] = json!({"path": root});
    let programs = json!({"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]});
    config["mounts"] = json!([{"destination": "/proc", "type": "proc"}, programs]);
}

#[test]
fn mount_points_do_not_leave_a_writable_root() {
    watched(|_| {
        let directory = tempfile::tempdir().unwrap();
        let (root, outside) = (directory.path().join("root"), directory.path().join("outside"));
        image(&root);
        fs::create_dir(&outside).unwrap();
        // Where they lead is another place in the container, of which they say the host's name.
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("../../../../../../../../../..", root.join("up")).unwrap();
        fs::create_dir_all(root.join(outside.strip_prefix("/").unwrap())).unwrap();
        symlink(outside.join("up/../../up/made-up"), root.join("dangling")).unwrap();
        let source = directory.path().join("source");
        fs::write(&source, "from the host\n").unwrap();
        let climbed = format!("/up{}/by-climbing", outside.display());
        let place = Place::with(|config| {
            run(config, &root, &format!("cat /absolute/point/file {climbed} && mkdir /absolute/made"));
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.push(json!({"destination": "/absolute/point", "type": "tmpfs"}));
            mounts.push(json!({
                "destination": "/absolute/point/file", "type": "bind", "source": source, "options": ["bind", "ro"],
            }));
            mounts.push(json!({"destination": "/dangling/deep", "type": "tmpfs"}));
            mounts.push(json!({"destination": climbed, "type": "bind", "source": source, "options": ["bind", "ro"]}));
        });
        assert_eq!(place.run(&["run", "c1"]), "from the host\nfrom the host\n");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something was made on the host");
        let inside = root.join(outside.strip_prefix("/").unwrap());
        for name in ["point", "by-climbing", "made", "../up/made-up/deep"] {
            assert!(inside.join(name).exists(), "{name}");
        }
        place.is_empty();
    });
}

#[test]
fn masked_and_read_only_paths_follow_links_within_the_image() {
    watched(|_| {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        image(&root);
        fs::create_dir(root.join("secret")).unwrap();
        fs::write(root.join("secret/key"), "key\n").unwrap();
        fs::write(root.join("fixed"), "fixed\n").unwrap();
        symlink("/secret", root.join("to-directory")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("/fixed", root.join("to-file")).unwrap();
        let script = "ls /secret | wc -l; cat /fixed; echo changed > /fixed || echo refused";
        let place = Place::with(|config| {
            run(config, &root, script);
            config["linux"] = json!({"maskedPaths": ["/to-directory", "/nothing"], "readonlyPaths": ["/to-file"]});
        });
        let output = place.try_run(&["run", "c1"]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "0\nfixed\nrefused\n", "{output:?}");
        assert_eq!(fs::read_to_string(root.join("fixed")).unwrap(), "fixed\n");
        let place = Place::with(|config| {
            run(config, &root, "true");
            config["linux"] = json!({"maskedPaths": ["/loop"]});
        });
        assert!(place.refused(&["run", "c1"]).contains("/loop"));
        place.is_empty();
    });
}

#[test]
fn a_list_of_users_that_cannot_be_read() {
    watched(|_| {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        image(&root);
        let passwd = root.join("etc/passwd");
        let place = Place::with(|config| run(config, &root, "echo $HOME"));
        let check = |home: &str| assert_eq!(place.run(&["run", "c1"]), format!("{home}\n"));
        nix::unistd::mkfifo(&passwd, Mode::S_IRUSR).unwrap();
        check("/");
        fs::remove_file(&passwd).unwrap();
        fs::create_dir(&passwd).unwrap();
        check("/");
        fs::remove_dir(&passwd).unwrap();
        symlink("/dev/zero", &passwd).unwrap();
        check("/");
        fs::remove_file(&passwd).unwrap();
        // A sparse one that is longer than memory.
        fs::File::create(&passwd).unwrap().set_len(1 << 42).unwrap();
        check("/");
        fs::write(&passwd, b"\xff:x:0:0:::\nroot:x:0:0:root:/home/of root:/bin/sh\n").unwrap();
        check("/");
        fs::write(&passwd, b"\xff\n::::\nroot:x:0:0:root:/home/of root:/bin/sh\n").unwrap();
        check("/home/of root");
        place.is_empty();
    });
}

#[test]
fn a_hook_of_the_image_that_never_stops_talking() {
    watched(|_| {
        let place = Place::with(|config| {
            let script =
                "echo first >&2; head -c 400M /dev/zero | tr '\\0' x >&2; echo x | head -c 400M /dev/zero; exit 4";
            config["hooks"] = json!({"startContainer": [{
                "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"],
            }]});
            // What it says is kept in the sentry's memory.
            config["linux"] = json!({"resources": {"memory": {"limit": 200 << 20}}});
        });
        let name = format!("faults-{}-hook", std::process::id());
        place.run(&["create", &name]);
        let problem = place.refused(&["start", &name]);
        assert!(problem.contains("startContainer hook #0 (/bin/sh): exit status 4: first"), "{problem}");
        assert!(problem.len() < 4096, "{} bytes", problem.len());
        place.run(&["delete", "--force", &name]);
        place.is_empty();
    });
}
