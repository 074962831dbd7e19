//! `execve(2)`, `execveat(2)`.

use crate::errno::{Errno, Result};
use crate::sentry::loader::MAX_ARG_STRLEN;
use crate::sentry::mm::user::{UserPtr, UserStr};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::sentry::task::exec::{Exec, exec};

/// The most that all strings of arguments and environment may take, whatever the stack's limit: `check_size` of the loader
/// has the exact rule.
const STRINGS_MAX: usize = 6 << 20;

/// Copies in a list of strings that ends with NULL. `E2BIG`, `EFAULT`.
fn read_strings(cur: &Current, list: UserPtr<u64>, budget: &mut usize) -> Result<Vec<Vec<u8>>> {
    let mut strings = Vec::new();
    if list.is_null() {
        return Ok(strings); // Linux takes it as an empty list
    }
    let mut at = 0;
    loop {
        // Pointers by the page: one host call for all of most lists.
        let addr = list.index(at).addr();
        let fits = (4096 - addr % 4096) as usize / 8;
        let pointers = UserPtr::<u64>::new(addr).read_array(cur.space(), fits.max(1))?;
        for pointer in pointers {
            if pointer == 0 {
                return Ok(strings);
            }
            let text = UserStr::new(pointer).read(cur.space(), MAX_ARG_STRLEN)?.ok_or(Errno::E2BIG)?;
            *budget = budget.checked_sub(text.len() + 9).ok_or(Errno::E2BIG)?;
            strings.push(text);
        }
        at += fits.max(1);
    }
}

/// `execve(2)`.
pub fn execve(cur: &mut Current, path: UserStr, argv: UserPtr<u64>, envp: UserPtr<u64>) -> SysResult {
    execveat(cur, Fd(libc::AT_FDCWD), path, argv, envp, 0)
}

/// `execveat(2)`.
pub fn execveat(
    cur: &mut Current,
    dir: Fd,
    path: UserStr,
    argv: UserPtr<u64>,
    envp: UserPtr<u64>,
    flags: i32,
) -> SysResult {
    if flags & !(libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    let path = path.read_path(cur.space())?;
    let mut budget = STRINGS_MAX;
    let argv = read_strings(cur, argv, &mut budget)?;
    let envp = read_strings(cur, envp, &mut budget)?;
    let file = cur.open_exec(dir, &path, flags)?;
    let cloexec = || cur.files().and_then(|files| files.get_with_flags(dir.0)).is_ok_and(|(_, cloexec)| cloexec);
    let (name, path_inaccessible) = match dir.0 {
        libc::AT_FDCWD => (path, false),
        _ if path.first() == Some(&b'/') => (path, false),
        fd if path.is_empty() => (format!("/dev/fd/{fd}").into_bytes(), cloexec()),
        fd => ([format!("/dev/fd/{fd}/").as_bytes(), &path].concat(), cloexec()),
    };
    exec(cur, Exec { file, path: name, argv, envp, path_inaccessible }).map(|()| 0)
}
