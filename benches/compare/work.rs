//! Ordinary programs, from their start to their end, within a sandbox that is there.

use std::path::Path;
use std::process::Stdio;

use super::common::Runtime;
use super::start::command;
use super::table::Figures;

/// What they work on.
const PREPARE: &str = r#"
set -e
cd "$(mktemp -d)"
export LC_ALL=C HOME="$PWD"
for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    mkdir "d$n"
    for m in 1 2 3 4 5 6 7 8 9 10; do seq "$n" "$((n * m * 20))" >"d$n/f$m"; done
done
git init -q . 2>/dev/null && git add . && git -c user.name=a -c user.email=a@b commit -qm all
printf '#include <stdio.h>\nint main(void) { return puts("hi") < 0; }\n' >a.c
"#;

/// What is measured: a name and a line of shell.
const WORK: &[(&str, &str)] = &[
    ("sh: 200 programs one after another", "i=0; while [ $i -lt 200 ]; do /bin/true; i=$((i+1)); done"),
    ("python3: start", "/usr/bin/python3 -c pass"),
    (
        "python3: 2000 threads one after another",
        "/usr/bin/python3 -c 'import threading\nfor i in range(2000): t = threading.Thread(target=int); t.start(); t.join()'",
    ),
    (
        "python3: 300 transactions of sqlite",
        "/usr/bin/python3 -c 'import sqlite3; d = sqlite3.connect(\"x.db\"); d.execute(\"create table t (a)\"); \
         [(d.execute(\"insert into t values (?)\", (n,)), d.commit()) for n in range(300)]'; rm x.db",
    ),
    ("gcc: a small program", "gcc -O1 -o a.out a.c"),
    ("git: status, diff, log", "git status --short >status; git diff HEAD >diff; git log --stat >log"),
    ("tar: in and out of an archive, 200 files", "tar cf a.tar d*; mkdir x; tar xf a.tar -C x; rm -r x a.tar"),
    ("grep -r", "grep -r 77777 . || true"),
    ("dd: 256 MiB in blocks of 64 KiB", "dd if=/dev/zero of=big bs=64k count=4096 2>dd; rm big"),
    ("a pipe: 256 MiB between two programs", "dd if=/dev/zero bs=128k count=2048 2>dd | cat >/dev/null"),
    ("sort, xz, md5sum", "seq 200000 | sort -R | xz -1 | md5sum >sum"),
];

/// Each three times, of which the shortest counts.
pub fn work(runtime: Option<&Runtime>) -> Figures {
    let state = tempfile::tempdir().expect("a directory");
    let mut script = PREPARE.to_owned();
    for (index, (_, line)) in WORK.iter().enumerate() {
        script += &format!(
            "for _ in 1 2 3; do a=$(date +%s%N); {{ {line}; }} >/dev/null; b=$(date +%s%N); echo \"{index} $(((b - a) / 1000))\"; done\n"
        );
    }
    script += "rm -rf \"$PWD\"\n";
    let mut command = command(runtime, state.path(), &["timeout", "120", "bash", "-c", &script]);
    let output = command.current_dir(Path::new("/")).stderr(Stdio::inherit()).output().expect("it starts");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let times = |index: usize| {
        let mine = move |line: &str| {
            let (of, micros) = line.split_once(' ')?;
            (of.parse() == Ok(index)).then_some(micros.parse::<f64>().ok()? / 1e3)
        };
        printed.lines().filter_map(mine).min_by(f64::total_cmp)
    };
    let figures = WORK.iter().enumerate();
    figures.filter_map(|(index, (name, _))| Some((format!("{name}, ms"), times(index)?))).collect()
}
