//! A root file system from packages of the Debian or Ubuntu release that this runs on, without installing any of them.
//!
//! The packages are downloaded and unpacked, not configured: no script of theirs runs. So packages that only serve such
//! scripts are left out, and the few things that the scripts would do for nginx are done here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::network::run;

/// Needed only to install, configure or start packages.
const LEFT_OUT: &[&str] = &[
    "adduser",
    "debconf",
    "dpkg",
    "init-system-helpers",
    "iproute2",
    "lsb-base",
    "perl",
    "perl-base",
    "sysvinit-utils",
    "ucf",
];

/// Programs to look around with. `busybox-static` holds all of them in one file.
const APPLETS: &[&str] = &["sh", "ls", "cat", "ps", "uname", "dmesg", "id", "sleep", "wget", "mount", "free", "head"];

/// Makes a root file system at `root` that nginx can run in. Packages are kept in `cache` for the next time.
pub fn nginx_root(root: &Path, cache: &Path) -> io::Result<()> {
    packages_root(root, &["base-files", "base-passwd", "busybox-static", "nginx"], cache)?;
    for applet in APPLETS {
        let link = root.join("usr/bin").join(applet);
        if !link.exists() {
            symlink("busybox", link)?;
        }
    }
    configure_nginx(root)
}

/// Makes a root file system at `root` of packages, `base-passwd` among them, and what they depend on.
pub fn packages_root(root: &Path, packages: &[&str], cache: &Path) -> io::Result<()> {
    fs::create_dir_all(cache)?;
    fs::create_dir_all(root)?;
    merged_usr(root)?;
    for archive in download(&closure(packages)?, cache)? {
        unpack(&archive, root)?;
    }
    // What the packages' scripts would do.
    for name in ["passwd", "group"] {
        fs::copy(root.join("usr/share/base-passwd").join(format!("{name}.master")), root.join("etc").join(name))?;
    }
    for directory in ["dev", "home", "mnt", "proc", "root", "run", "srv", "sys", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    Ok(())
}

/// What the scripts of nginx's packages would do.
pub fn configure_nginx(root: &Path) -> io::Result<()> {
    let enabled = root.join("etc/nginx/sites-enabled");
    fs::create_dir_all(&enabled)?;
    symlink("../sites-available/default", enabled.join("default"))?;
    for directory in ["var/www/html", "var/log/nginx", "var/lib/nginx"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy(root.join("usr/share/nginx/html/index.html"), root.join("var/www/html/index.html"))?;
    Ok(())
}

/// `/bin` is `/usr/bin` and so on, as in every Debian and Ubuntu of today.
fn merged_usr(root: &Path) -> io::Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(name))?;
        symlink(format!("usr/{name}"), root.join(name))?;
    }
    Ok(())
}

/// The packages and what they depend on: of alternatives the first that exists.
fn closure(packages: &[&str]) -> io::Result<BTreeSet<String>> {
    let output = Command::new("apt-cache")
        .args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts"])
        .args(["--no-breaks", "--no-replaces", "--no-enhances"])
        .args(packages)
        .env("LC_ALL", "C")
        .stderr(Stdio::inherit())
        .output()?;
    let dependencies = parse_depends(&String::from_utf8_lossy(&output.stdout));
    let mut found = BTreeSet::new();
    let mut queue: Vec<String> = packages.iter().map(|&name| name.to_owned()).collect();
    while let Some(name) = queue.pop() {
        let left_out = LEFT_OUT.contains(&name.as_str()) && !packages.contains(&name.as_str());
        if left_out || found.contains(&name) {
            continue;
        }
        let needs = dependencies.get(&name);
        let needs = needs.ok_or_else(|| io::Error::other(format!("there is no package {name}: apt-get update?")))?;
        queue.extend(needs.iter().cloned());
        found.insert(name);
    }
    Ok(found)
}

/// Reads the output of `apt-cache depends`, of which this is a sample:
///
/// ```text
/// nginx-common
///  |Depends: debconf          an alternative: the next line goes with it
///   Depends: <debconf-2.0>    a virtual package: names of those that provide it follow
///     cdebconf
/// ```
fn parse_depends(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut packages: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = String::new();
    // The alternatives read so far, to which providers and the next alternative belong.
    let mut chosen: Option<String> = None;
    let mut more_alternatives = false;
    for line in text.lines() {
        let word = line.trim();
        if !line.starts_with(' ') {
            let needs = chosen.take();
            packages.entry(std::mem::take(&mut current)).or_default().extend(needs);
            current = word.to_owned();
            packages.entry(current.clone()).or_default();
            more_alternatives = false;
        } else if let Some((kind, name)) = word.split_once("epends: ") {
            if !more_alternatives {
                packages.entry(current.clone()).or_default().extend(chosen.take());
            }
            more_alternatives = kind.starts_with('|');
            if !name.starts_with('<') {
                chosen.get_or_insert_with(|| name.to_owned());
            }
        } else if !word.starts_with('<') {
            chosen.get_or_insert_with(|| word.to_owned());
        }
    }
    packages.entry(current).or_default().extend(chosen);
    packages
}

/// Downloads the packages that are not in the cache, all in one go; returns where they are.
fn download(packages: &BTreeSet<String>, cache: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = cached(cache)?;
    let missing: Vec<&String> = packages.iter().filter(|&package| !found.contains_key(package)).collect();
    if !missing.is_empty() {
        let as_root = ["-o", "APT::Sandbox::User=root"];
        run(Command::new("apt-get").args(as_root).args(["download", "--quiet"]).args(missing).current_dir(cache))?;
        found = cached(cache)?;
    }
    let path = |package: &String| {
        let path = found.remove(package);
        path.ok_or_else(|| io::Error::other(format!("apt-get download {package} made no file")))
    };
    packages.iter().map(path).collect()
}

/// The packages in the cache by name: a file is NAME_VERSION_ARCHITECTURE.deb.
fn cached(cache: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let (true, Some(package)) = (name.ends_with(".deb"), name.split('_').next()) {
            found.insert(package.to_owned(), path);
        }
    }
    Ok(found)
}

/// Unpacks a package. Links such as `lib -> usr/lib` stay links.
fn unpack(package: &Path, root: &Path) -> io::Result<()> {
    let mut archive = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package).stdout(Stdio::piped()).spawn()?;
    let stream = archive.stdout.take().expect("it was asked for");
    let unpacked =
        run(Command::new("tar").args(["-x", "--keep-directory-symlink", "-C"]).arg(root).stdin(Stdio::from(stream)));
    let status = archive.wait()?;
    unpacked?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("dpkg-deb {}: {status}", package.display()))),
    }
}
