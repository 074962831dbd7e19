//! `runsc install`, and what Docker then says about the runtime.

use super::engine::engine;

#[test]
fn docker_lists_the_runtime() {
    let engine = engine();
    let ran = engine.docker(["info", "--format", "{{range $name, $_ := .Runtimes}}{{$name}} {{end}}"]);
    let names: Vec<&str> = ran.success().split_whitespace().collect();
    assert!(names.contains(&engine.runtime()), "{names:?}");
    // What was in the file stays.
    let root = engine.docker(["info", "--format", "{{.DockerRootDir}}"]);
    assert_eq!(root.success(), "/run/engine/data\n");
}
