use super::number;
use super::pid::memory::roll_up;
use super::pid::settings::{limits_text, parse_number};
use super::pid::status::{mask, ranges};
use super::system::{Memory, meminfo};
use crate::errno::Errno;
use crate::sentry::limits::Limits;

#[test]
fn a_process_has_one_name() {
    assert_eq!(number(b"17"), Some(17));
    for name in [&b"017"[..], b"+1", b"-1", b"1x", b"99999999999"] {
        assert_eq!(number(name), None);
    }
}

#[test]
fn sets_of_cpus_have_linuxs_layout() {
    assert_eq!((mask(&[0, 1], 2), ranges(&[0, 1])), ("3".into(), "0-1".into()));
    assert_eq!(mask(&[0, 5, 35], 36), "8,00000021");
    assert_eq!(mask(&[63], 64), "80000000,00000000");
    assert_eq!(ranges(&[0, 2, 3, 4, 9]), "0,2-4,9");
}

/// As the host shows its own, but for the values.
#[test]
fn limits_have_the_hosts_layout() {
    let host = std::fs::read_to_string("/proc/self/limits").unwrap();
    let ours = limits_text(&Limits::default());
    let shape = |text: &str| -> Vec<String> {
        let cut = |line: &str| format!("{}{}", &line[..26], &line[68..]);
        text.lines().map(cut).collect()
    };
    assert_eq!(shape(&ours), shape(&host));
}

/// Names and columns as the host has them, up to what depends on its hardware.
#[test]
fn meminfo_has_the_hosts_lines() {
    let host = std::fs::read_to_string("/proc/meminfo").unwrap();
    let ours = meminfo(&Memory { total_kib: 4_000_000, free_kib: 1_000_000, ..Memory::default() });
    assert!(ours.starts_with("MemTotal:        4000000 kB\nMemFree:         1000000 kB\n"), "{ours}");
    let name = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    let host: Vec<_> = host.lines().map(name).collect();
    for line in ours.lines() {
        let width = if line.ends_with(" kB") { 27 } else { 24 };
        assert!(line.len() >= width, "{line:?}");
        // An older host may lack newer lines, none of the first ones.
        let essential = ["MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "Shmem", "Slab"];
        assert!(!essential.contains(&name(line).as_str()) || host.contains(&name(line)));
    }
}

#[test]
fn numbers_are_read_as_the_kernel_reads_them() {
    assert_eq!(parse_number(b" -17\n"), Ok(-17));
    assert_eq!(parse_number(b"0x10"), Ok(16));
    assert_eq!(parse_number(b"010"), Ok(8));
    assert_eq!(parse_number(b"1000"), Ok(1000));
    for bad in [&b""[..], b"--1", b"1 2", b"0x", b"9999999999999999999"] {
        assert_eq!(parse_number(bad), Err(Errno::EINVAL), "{bad:?}");
    }
}

#[test]
fn a_rollup_adds_areas_up() {
    let area = |range: &str, rss: u64| format!("{range} rw-p 00000000 00:00 0 \nRss: {rss} kB\nAnonymous: 4 kB\n");
    let smaps = area("1000-3000", 8) + &area("5000-6000", 4);
    let text = String::from_utf8(roll_up(smaps.as_bytes())).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next().unwrap().split_whitespace().next(), Some("1000-6000"));
    assert_eq!(lines.next(), Some("Rss:                  12 kB"));
    assert!(text.contains("Pss_Anon:              8 kB\n"));
    assert_eq!(roll_up(b""), b"");
}
