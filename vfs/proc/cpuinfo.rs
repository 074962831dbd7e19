//! `/proc/cpuinfo`, from what the CPUID instruction tells.

use std::arch::x86_64::{__cpuid_count, __get_cpuid_max, _rdtsc, CpuidResult};
use std::fmt::Write;
use std::time::Instant;

/// A register of CPUID's result.
#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Register::{Eax, Ebx, Ecx, Edx};

/// The flags of one register, in the order of their bits; `""` where a bit has none that is shown.
struct Word {
    leaf: u32,
    subleaf: u32,
    register: Register,
    /// `(bit, name)`.
    names: &'static [(u8, &'static str)],
}

const fn word(leaf: u32, subleaf: u32, register: Register, names: &'static [(u8, &'static str)]) -> Word {
    Word { leaf, subleaf, register, names }
}

/// The words in the order in which Linux shows them.
#[rustfmt::skip]
const WORDS: [Word; 10] = [
    word(1, 0, Edx, &[
        (0, "fpu"), (1, "vme"), (2, "de"), (3, "pse"), (4, "tsc"), (5, "msr"), (6, "pae"), (7, "mce"), (8, "cx8"),
        (9, "apic"), (11, "sep"), (12, "mtrr"), (13, "pge"), (14, "mca"), (15, "cmov"), (16, "pat"), (17, "pse36"),
        (18, "pn"), (19, "clflush"), (21, "dts"), (22, "acpi"), (23, "mmx"), (24, "fxsr"), (25, "sse"), (26, "sse2"),
        (27, "ss"), (28, "ht"), (29, "tm"), (30, "ia64"), (31, "pbe"),
    ]),
    word(0x8000_0001, 0, Edx, &[
        (11, "syscall"), (19, "mp"), (20, "nx"), (22, "mmxext"), (25, "fxsr_opt"), (26, "pdpe1gb"), (27, "rdtscp"),
        (29, "lm"), (30, "3dnowext"), (31, "3dnow"),
    ]),
    word(0x8000_0007, 0, Edx, &[(8, "constant_tsc")]),
    word(1, 0, Ecx, &[
        (0, "pni"), (1, "pclmulqdq"), (2, "dtes64"), (3, "monitor"), (4, "ds_cpl"), (5, "vmx"), (6, "smx"), (7, "est"),
        (8, "tm2"), (9, "ssse3"), (10, "cid"), (11, "sdbg"), (12, "fma"), (13, "cx16"), (14, "xtpr"), (15, "pdcm"),
        (17, "pcid"), (18, "dca"), (19, "sse4_1"), (20, "sse4_2"), (21, "x2apic"), (22, "movbe"), (23, "popcnt"),
        (24, "tsc_deadline_timer"), (25, "aes"), (26, "xsave"), (28, "avx"), (29, "f16c"), (30, "rdrand"),
        (31, "hypervisor"),
    ]),
    word(0x8000_0001, 0, Ecx, &[
        (0, "lahf_lm"), (1, "cmp_legacy"), (2, "svm"), (3, "extapic"), (4, "cr8_legacy"), (5, "abm"), (6, "sse4a"),
        (7, "misalignsse"), (8, "3dnowprefetch"), (9, "osvw"), (10, "ibs"), (11, "xop"), (12, "skinit"), (13, "wdt"),
        (15, "lwp"), (16, "fma4"), (17, "tce"), (21, "tbm"), (22, "topoext"), (29, "mwaitx"),
    ]),
    word(7, 0, Ebx, &[
        (0, "fsgsbase"), (1, "tsc_adjust"), (2, "sgx"), (3, "bmi1"), (4, "hle"), (5, "avx2"), (7, "smep"), (8, "bmi2"),
        (9, "erms"), (10, "invpcid"), (11, "rtm"), (14, "mpx"), (16, "avx512f"), (17, "avx512dq"), (18, "rdseed"),
        (19, "adx"), (20, "smap"), (21, "avx512ifma"), (23, "clflushopt"), (24, "clwb"), (25, "intel_pt"),
        (26, "avx512pf"), (27, "avx512er"), (28, "avx512cd"), (29, "sha_ni"), (30, "avx512bw"), (31, "avx512vl"),
    ]),
    word(0xd, 1, Eax, &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves")]),
    word(7, 1, Eax, &[(4, "avx_vnni"), (5, "avx512_bf16")]),
    word(7, 0, Ecx, &[
        (1, "avx512vbmi"), (2, "umip"), (3, "pku"), (4, "ospke"), (5, "waitpkg"), (6, "avx512_vbmi2"), (8, "gfni"),
        (9, "vaes"), (10, "vpclmulqdq"), (11, "avx512_vnni"), (12, "avx512_bitalg"), (14, "avx512_vpopcntdq"),
        (16, "la57"), (22, "rdpid"), (25, "cldemote"), (27, "movdiri"), (28, "movdir64b"),
    ]),
    word(7, 0, Edx, &[
        (2, "avx512_4vnniw"), (3, "avx512_4fmaps"), (4, "fsrm"), (8, "avx512_vp2intersect"), (10, "md_clear"),
        (14, "serialize"), (16, "tsxldtrk"), (18, "pconfig"), (22, "amx_bf16"), (23, "avx512_fp16"), (24, "amx_tile"),
        (25, "amx_int8"), (28, "flush_l1d"), (29, "arch_capabilities"),
    ]),
];

/// CPUID of a leaf that the processor has; all zero for others.
fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let (highest, _) = __get_cpuid_max(leaf & 0x8000_0000);
    match leaf <= highest {
        true => __cpuid_count(leaf, subleaf),
        false => CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 },
    }
}

fn register(result: &CpuidResult, register: Register) -> u32 {
    match register {
        Eax => result.eax,
        Ebx => result.ebx,
        Ecx => result.ecx,
        Edx => result.edx,
    }
}

/// The names of the set bits of one register.
fn names(bits: u32, names: &'static [(u8, &'static str)]) -> impl Iterator<Item = &'static str> {
    names.iter().filter(move |(bit, _)| bits >> bit & 1 != 0).map(|(_, name)| *name)
}

/// The `flags` line.
fn flags() -> String {
    let all = WORDS.iter().flat_map(|word| {
        let result = cpuid(word.leaf, word.subleaf);
        names(register(&result, word.register), word.names)
    });
    all.collect::<Vec<_>>().join(" ")
}

/// Text that CPUID gives in registers, without what pads it.
fn text_of(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).filter(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// Measures the time stamp counter's rate, which is the nominal clock.
pub struct Clock {
    began: Instant,
    count: u64,
}

fn ticks() -> u64 {
    // SAFETY: every x86_64 processor has the instruction.
    unsafe { _rdtsc() }
}

impl Clock {
    /// Begins to measure.
    pub fn start() -> Clock {
        Clock { began: Instant::now(), count: ticks() }
    }

    /// Megahertz so far.
    pub fn mhz(&self) -> f64 {
        let elapsed = self.began.elapsed().as_secs_f64() * 1e6;
        if elapsed > 0.0 { ticks().saturating_sub(self.count) as f64 / elapsed } else { 0.0 }
    }
}

/// Family, model and stepping from leaf 1.
fn signature(eax: u32) -> (u32, u32, u32) {
    let (family, model) = (eax >> 8 & 0xf, eax >> 4 & 0xf);
    let full_family = if family == 0xf { family + (eax >> 20 & 0xff) } else { family };
    let full_model = if matches!(family, 0x6 | 0xf) { model | (eax >> 16 & 0xf) << 4 } else { model };
    (full_family, full_model, eax & 0xf)
}

/// The largest cache in KiB: leaf 4 (Intel), or 0x8000001d and its like (AMD).
fn cache_kib() -> u64 {
    let amd = cpuid(0x8000_0000, 0).ebx == u32::from_le_bytes(*b"Auth");
    let leaf = if amd { 0x8000_001d } else { 4 };
    let sizes = (0..8).map(|index| cpuid(leaf, index)).take_while(|result| result.eax & 0x1f != 0).map(|result| {
        let field = |value: u32, shift: u32, mask: u32| u64::from(value >> shift & mask) + 1;
        let ways = field(result.ebx, 22, 0x3ff);
        ways * field(result.ebx, 12, 0x3ff) * field(result.ebx, 0, 0xfff) * (u64::from(result.ecx) + 1) / 1024
    });
    sizes.max().unwrap_or(0)
}

/// The file, for `cpus` processors of one package.
pub fn text(cpus: usize, mhz: f64) -> String {
    let vendor = cpuid(0, 0);
    let (family, model, stepping) = signature(cpuid(1, 0).eax);
    let brand: Vec<u32> = (0x8000_0002..=0x8000_0004u32)
        .flat_map(|leaf| {
            let result = cpuid(leaf, 0);
            [result.eax, result.ebx, result.ecx, result.edx]
        })
        .collect();
    let (name, flags, cache) = (text_of(&brand), flags(), cache_kib());
    let name = if name.is_empty() { "unknown" } else { &name };
    let vendor_id = text_of(&[vendor.ebx, vendor.edx, vendor.ecx]);
    let line = ((cpuid(1, 0).ebx >> 8 & 0xff) * 8).max(8);
    let widths = cpuid(0x8000_0008, 0).eax;
    let mut text = String::new();
    for cpu in 0..cpus {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "processor\t: {cpu}\nvendor_id\t: {vendor_id}\ncpu family\t: {family}\nmodel\t\t: {model}\n\
             model name\t: {name}\nstepping\t: {stepping}\ncpu MHz\t\t: {mhz:.3}\ncache size\t: {cache} KB\n\
             physical id\t: 0\nsiblings\t: {cpus}\ncore id\t\t: {cpu}\ncpu cores\t: {cpus}\napicid\t\t: {cpu}\n\
             initial apicid\t: {cpu}\nfpu\t\t: yes\nfpu_exception\t: yes\ncpuid level\t: {}\nwp\t\t: yes\n\
             flags\t\t: {flags}\nbugs\t\t: \nbogomips\t: {:.2}\nclflush size\t: {line}\ncache_alignment\t: {line}\n\
             address sizes\t: {} bits physical, {} bits virtual\npower management:\n\n",
            vendor.eax,
            mhz * 2.0,
            widths & 0xff,
            widths >> 8 & 0xff
        );
    }
    text
}
