//! Names of units: what `linux.cgroupsPath` says in the form `slice:prefix:name`.

use std::path::{Path, PathBuf};

/// The slice of containers that name none.
const DEFAULT_SLICE: &str = "system.slice";

/// The prefix of a container without a path.
const DEFAULT_PREFIX: &str = "runsc";

/// Longest name of a unit: `systemd.unit(5)`.
const NAME_MAX: usize = 255;

/// A container's scope, and the slice that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// `system.slice`.
    pub slice: String,
    /// `docker-0123.scope`.
    pub unit: String,
}

impl Name {
    /// Of `linux.cgroupsPath`, or of a container that has none. What is wrong, in words.
    pub fn parse(path: Option<&Path>, id: &str) -> Result<Name, String> {
        let default = format!(":{DEFAULT_PREFIX}:{id}");
        let text = match path {
            Some(path) => path.to_str().ok_or("is not UTF-8")?,
            None => &default,
        };
        let parts: Vec<&str> = text.split(':').collect();
        let &[slice, prefix, name] = parts.as_slice() else {
            return Err(format!("{text:?} is not of the form slice:prefix:name that --systemd-cgroup takes"));
        };
        if name.ends_with(".slice") {
            return Err(format!("{name:?} is a slice, and a slice holds no container"));
        }
        let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
        expand(slice)?;
        // As runc names it; engines look for it.
        let unit = format!("{prefix}-{name}.scope");
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.\\@".contains(&byte);
        if unit.len() > NAME_MAX || !unit.bytes().all(good) || name.is_empty() {
            return Err(format!("{unit:?} is no name of a systemd unit"));
        }
        Ok(Name { slice: slice.to_owned(), unit })
    }

    /// Its cgroup, below systemd's own.
    pub fn cgroup(&self) -> PathBuf {
        expand(&self.slice).unwrap_or_default().join(&self.unit)
    }
}

/// The cgroup of a slice: `a-b.slice` lies in `a.slice`, and `-.slice` is the root. `systemd.slice(5)`.
fn expand(slice: &str) -> Result<PathBuf, String> {
    let wrong = || format!("{slice:?} is no name of a slice");
    let name = slice.strip_suffix(".slice").ok_or_else(wrong)?;
    if name == "-" {
        return Ok(PathBuf::new());
    }
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.\\".contains(&byte);
    if slice.len() > NAME_MAX || !name.bytes().all(good) {
        return Err(wrong());
    }
    let mut path = PathBuf::new();
    let mut above = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return Err(wrong());
        }
        above += part;
        path.push(format!("{above}.slice"));
        above.push('-');
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_lie_in_slices() {
        let expanded = |slice: &str| expand(slice).map(|path| path.display().to_string());
        assert_eq!(expanded("system.slice").as_deref(), Ok("system.slice"));
        assert_eq!(expanded("a-b-c.slice").as_deref(), Ok("a.slice/a-b.slice/a-b-c.slice"));
        assert_eq!(expanded("-.slice").as_deref(), Ok(""));
        for bad in
            ["", "system", ".slice", "a--b.slice", "-a.slice", "a-.slice", "a/b.slice", "a b.slice", "../x.slice"]
        {
            assert!(expand(bad).unwrap_err().contains(bad), "{bad}");
        }
    }

    #[test]
    fn paths_name_scopes() {
        let parse = |path: &str| Name::parse(Some(Path::new(path)), "c1");
        let docker = parse("system.slice:docker:0123abcd").unwrap();
        assert_eq!((docker.slice.as_str(), docker.unit.as_str()), ("system.slice", "docker-0123abcd.scope"));
        assert_eq!(docker.cgroup(), Path::new("system.slice/docker-0123abcd.scope"));
        let pod = parse("kubepods-burstable-pod1_2.slice:cri-containerd:ab").unwrap();
        let expected =
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-ab.scope";
        assert_eq!(pod.cgroup(), Path::new(expected));
        assert_eq!(parse(":x:y").unwrap().slice, "system.slice");
        assert_eq!(parse("-.slice:x:y").unwrap().cgroup(), Path::new("x-y.scope"));
        assert_eq!(Name::parse(None, "c1").unwrap().cgroup(), Path::new("system.slice/runsc-c1.scope"));
    }

    #[test]
    fn what_is_no_scope_is_refused() {
        for bad in
            ["/docker/c1", "a.slice:b", "a.slice:b:c:d", "x:b:c", "a.slice:b:c.slice", "a.slice:b:c/d", "a.slice:b:"]
        {
            let problem = Name::parse(Some(Path::new(bad)), "c1").unwrap_err();
            assert!(!problem.is_empty(), "{bad}");
        }
        assert!(Name::parse(Some(Path::new(&format!(":x:{}", "y".repeat(300)))), "c1").is_err());
        assert!(Name::parse(Some(Path::new("/docker/c1")), "c1").unwrap_err().contains("slice:prefix:name"));
    }
}
