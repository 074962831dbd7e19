//! The auxiliary vector: what the kernel tells a program of itself and of the processor, `getauxval(3)`.

/// What the host's vector says of the processor, taken over as it is: container code runs on the same one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostAux {
    /// `AT_HWCAP`.
    pub hwcap: u64,
    /// `AT_HWCAP2`.
    pub hwcap2: u64,
    /// `AT_CLKTCK`.
    pub clktck: u64,
    /// `AT_MINSIGSTKSZ`.
    pub minsigstksz: u64,
    /// `AT_PLATFORM`.
    pub platform: Vec<u8>,
}

/// `AT_MINSIGSTKSZ`.
pub const AT_MINSIGSTKSZ: u64 = 51;
/// `AT_RSEQ_FEATURE_SIZE`.
pub const AT_RSEQ_FEATURE_SIZE: u64 = 27;
/// `AT_RSEQ_ALIGN`.
pub const AT_RSEQ_ALIGN: u64 = 28;

impl HostAux {
    /// Reads this process's own vector.
    pub fn read() -> HostAux {
        // SAFETY: getauxval only looks up the process's vector.
        let get = |kind: u64| unsafe { libc::getauxval(kind) };
        let platform = get(libc::AT_PLATFORM) as *const libc::c_char;
        let platform = if platform.is_null() {
            b"x86_64".to_vec()
        } else {
            // SAFETY: the kernel put a string there, which lives as long as the process.
            unsafe { std::ffi::CStr::from_ptr(platform) }.to_bytes().to_vec()
        };
        HostAux {
            hwcap: get(libc::AT_HWCAP),
            hwcap2: get(libc::AT_HWCAP2),
            clktck: get(libc::AT_CLKTCK).max(1),
            minsigstksz: get(AT_MINSIGSTKSZ).max(2048),
            platform,
        }
    }
}
