//! System V IPC: `shmget(2)`, `semget(2)` and their kin. The objects are in [`ipc`](crate::sentry::ipc).

pub mod sem;
pub mod shm;
