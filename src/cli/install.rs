//! `runsc install`, `runsc uninstall`: makes Docker know this runtime, or forget it.

use std::env;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::limit_args::{InstallArgs, UninstallArgs};
use crate::container::{Context, Error, Result};

/// Adds the runtime to Docker's configuration. What else is there stays as it is, in its order.
pub fn install(args: &InstallArgs) -> Result<i32> {
    let program = env::current_exe().doing(|| "find this program")?;
    let mut config = read(&args.config_file)?;
    add(&mut config, args, &program).map_err(|problem| at(&args.config_file, problem))?;
    write(&args.config_file, &config)?;
    super::print(&format!("Added runtime {:?} with program {}\n", args.runtime, program.display()))?;
    Ok(0)
}

/// Removes the runtime from Docker's configuration.
pub fn uninstall(args: &UninstallArgs) -> Result<i32> {
    let mut config = read(&args.config_file)?;
    let removed = match config.get_mut("runtimes") {
        Some(Value::Object(runtimes)) => runtimes.shift_remove(&args.runtime).is_some(),
        _ => false,
    };
    if !removed {
        return Err(at(&args.config_file, format!("there is no runtime {:?}", args.runtime)));
    }
    write(&args.config_file, &config)?;
    super::print(&format!("Removed runtime {:?}\n", args.runtime))?;
    Ok(0)
}

fn at(file: &Path, problem: String) -> Error {
    Error::Usage(format!("{}: {problem}", file.display()))
}

fn add(config: &mut Map<String, Value>, args: &InstallArgs, program: &Path) -> std::result::Result<(), String> {
    let runtimes = config.entry("runtimes").or_insert_with(|| json!({}));
    let runtimes = runtimes.as_object_mut().ok_or("runtimes is not an object")?;
    if runtimes.contains_key(&args.runtime) && !args.clobber {
        return Err(format!("runtime {:?} is there already", args.runtime));
    }
    let mut runtime = json!({"path": program});
    if !args.args.is_empty() {
        runtime["runtimeArgs"] = json!(args.args);
    }
    runtimes.insert(args.runtime.clone(), runtime);
    if args.experimental {
        config.insert("experimental".into(), json!(true));
    }
    if let Some(driver) = &args.cgroupdriver {
        const OPTION: &str = "native.cgroupdriver=";
        let options = config.entry("exec-opts").or_insert_with(|| json!([]));
        let options = options.as_array_mut().ok_or("exec-opts is not a list")?;
        options.retain(|option| !option.as_str().is_some_and(|option| option.starts_with(OPTION)));
        options.push(json!(format!("{OPTION}{driver}")));
    }
    Ok(())
}

/// The document; an empty one when there is no file.
fn read(file: &Path) -> Result<Map<String, Value>> {
    let text = match fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
        text => text.doing(|| format!("read {}", file.display()))?,
    };
    if text.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_slice(&text) {
        Ok(Value::Object(config)) => Ok(config),
        Ok(_) => Err(at(file, "is not a JSON object".into())),
        Err(error) => Err(at(file, format!("is not JSON: {error}"))),
    }
}

/// Replaces the file in one step, keeping its owner and mode. What was there is kept as `FILE~`.
fn write(file: &Path, config: &Map<String, Value>) -> Result<()> {
    let doing = || format!("write {}", file.display());
    // A link leads to the file that is meant.
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let beside = |end: &str| -> PathBuf {
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(end);
        file.with_file_name(name)
    };
    let mut text = Vec::new();
    let mut writer =
        serde_json::Serializer::with_formatter(&mut text, serde_json::ser::PrettyFormatter::with_indent(b"    "));
    serde::Serialize::serialize(config, &mut writer).map_err(io::Error::from).doing(doing)?;
    text.push(b'\n');
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent).doing(doing)?;
    }
    let new = beside(".new");
    let old = fs::metadata(&file).ok();
    let written = || -> io::Result<()> {
        let mut out = File::create(&new)?;
        out.set_permissions(Permissions::from_mode(old.as_ref().map_or(0o644, |old| old.mode() & 0o7777)))?;
        if let Some(old) = &old {
            std::os::unix::fs::fchown(&out, Some(old.uid()), Some(old.gid()))?;
            fs::copy(&file, beside("~"))?;
        }
        out.write_all(&text)?;
        out.sync_all()?;
        fs::rename(&new, &file)
    };
    written().inspect_err(|_| drop(fs::remove_file(&new))).doing(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(file: &Path) -> InstallArgs {
        InstallArgs {
            config_file: file.into(),
            runtime: "sandbox".into(),
            clobber: true,
            experimental: false,
            cgroupdriver: None,
            args: Vec::new(),
        }
    }

    #[test]
    fn everything_else_stays_in_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("daemon.json");
        let before = r#"{"zeta": 1, "runtimes": {"other": {"path": "/o"}}, "exec-opts": ["a=b", "native.cgroupdriver=systemd"], "alpha": [1.5]}"#;
        fs::write(&file, before).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let mut install = args(&file);
        install.args = vec!["--debug".into(), "--network=none".into()];
        install.cgroupdriver = Some("cgroupfs".into());
        let mut config = read(&file).unwrap();
        add(&mut config, &install, Path::new("/bin/runsc")).unwrap();
        write(&file, &config).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let keys: Vec<usize> =
            ["zeta", "runtimes", "exec-opts", "alpha"].iter().map(|key| text.find(key).unwrap()).collect();
        assert!(keys.is_sorted(), "{text}");
        let expected = json!({
            "zeta": 1,
            "runtimes": {
                "other": {"path": "/o"},
                "sandbox": {"path": "/bin/runsc", "runtimeArgs": ["--debug", "--network=none"]},
            },
            "exec-opts": ["a=b", "native.cgroupdriver=cgroupfs"],
            "alpha": [1.5],
        });
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(directory.path().join("daemon.json~")).unwrap(), before);
        assert!(!directory.path().join("daemon.json.new").exists());
    }

    #[test]
    fn a_runtime_can_be_kept() {
        let mut config = serde_json::from_str(r#"{"runtimes": {"sandbox": {"path": "/o"}}}"#).unwrap();
        let install = InstallArgs { clobber: false, ..args(Path::new("/x")) };
        assert!(add(&mut config, &install, Path::new("/bin/runsc")).unwrap_err().contains("already"));
        assert_eq!(config["runtimes"]["sandbox"]["path"], "/o");
    }

    #[test]
    fn documents_that_cannot_be_used_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("daemon.json");
        for (text, problem) in
            [("{\"a\": ", "not JSON"), ("[]", "not a JSON object"), ("{\"runtimes\": 3}", "runtimes")]
        {
            fs::write(&file, text).unwrap();
            let error = install(&args(&file)).unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains("daemon.json"), "{error}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
    }
}
