//! `/proc/net`: `proc_pid_net(5)`.

use std::sync::{Arc, Weak};

use crate::sentry::kernel::Kernel;
use crate::vfs::kernfs::{Dir, Tree};

/// The directory, for a mount of `kernel`'s tasks.
pub fn dir(tree: &Arc<Tree>, kernel: &Weak<Kernel>) -> Arc<Dir> {
    let _ = kernel;
    Dir::new(tree, 0o555, None)
}
