//! A network that is set up between `create` and `start`, as engines without hooks do.

use std::io::Write;
use std::net::TcpListener;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use serde_json::json;

use crate::place::Place;

#[track_caller]
fn run(words: &str) {
    let mut split = words.split(' ');
    let output = Command::new(split.next().expect("a word")).args(split).output().expect("it starts");
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_is_in_the_new_namespace_at_the_start_is_the_container_s() {
    const SCRIPT: &str = "ip route | grep -q 'default via 10.9.0.1 dev eth0' || exit 1
                          exec 3<>/dev/tcp/10.9.0.1/7000 || exit 2
                          read -r word <&3; [ \"$word\" = 10.9.0.2 ] || exit 3; exit 7";
    let test = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may");
        let place = Place::with(|config| {
            config["process"]["args"] = json!(["/bin/bash", "-c", SCRIPT]);
            config["process"]["env"] = json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
            config["linux"] = json!({"namespaces": [{"type": "network"}]});
        });
        place.run(&["create", "c1"]);
        let pid = place.state("c1")["pid"].as_u64().expect("a number");
        run(&format!("ip link add far0 type veth peer name eth0 netns {pid}"));
        run("ip address add 10.9.0.1/24 dev far0");
        run("ip link set far0 up");
        for words in ["address add 10.9.0.2/24 dev eth0", "link set eth0 up", "route add default via 10.9.0.1"] {
            run(&format!("nsenter --net --target={pid} ip {words}"));
        }
        let server = TcpListener::bind("10.9.0.1:7000").expect("the address is there");
        thread::spawn(move || {
            let (mut peer, from) = server.accept().expect("a connection");
            writeln!(peer, "{}", from.ip()).expect("the peer reads");
        });
        place.run(&["start", "c1"]);
        assert_eq!(place.wait("c1"), 7);
        place.run(&["delete", "c1"]);
        place.is_empty();
    };
    thread::scope(|scope| scope.spawn(test).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
