//! `runsc start`: runs the program of a created container.

use super::args::{Globals, IdsArgs};
use crate::container::Result;
use crate::container::life::Container;

/// Starts each of the containers; goes on after a failure, which is returned.
pub fn run(globals: &Globals, args: &IdsArgs) -> Result<i32> {
    let root = globals.state_root();
    let start = |id: &String| Container::open(&root, id)?.start();
    let outcomes: Vec<Result<()>> = args.ids.iter().map(start).collect();
    outcomes.into_iter().collect::<Result<Vec<()>>>().map(|_| 0)
}
