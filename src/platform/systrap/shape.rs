//! Which instructions stand around a `syscall`, and which of them can make room for a jump.
//!
//! Instructions cannot be told by looking backwards for sure. What is taken for `mov $n,%eax` must load the very number the
//! call was made with, and must not look like the end of a longer instruction with an immediate of four bytes.

/// How many bytes before the end of the call are looked at.
pub const BEFORE: usize = 16;

/// How many behind.
pub const BEHIND: usize = 16;

/// What can be displaced.
#[derive(Debug, PartialEq, Eq)]
pub struct Shape {
    /// Address of the first byte that is changed.
    pub start: u64,
    /// How many bytes are changed, the jump's five at least.
    pub len: usize,
    /// Instructions that are to be carried out elsewhere.
    pub displaced: Vec<u8>,
    /// Whether they come behind the call, which is overwritten then.
    pub behind: bool,
}

/// Looks at `bytes`, of which `at` are before `back`, the address behind the call, which was made with `number`.
pub fn find(bytes: &[u8], at: usize, back: u64, number: u64) -> Option<Shape> {
    let (before, behind) = bytes.split_at_checked(at)?;
    let before = before.strip_suffix(&[0x0f, 0x05])?;
    in_front(before, back, number).or_else(|| following(behind, back))
}

fn in_front(before: &[u8], back: u64, number: u64) -> Option<Shape> {
    let len = loads_number(before, number).or_else(|| fixed(before))?;
    let displaced = before[before.len() - len..].to_vec();
    Some(Shape { start: back - 2 - len as u64, len, displaced, behind: false })
}

/// `mov $n,%eax` or `mov $n,%rax`: its length.
fn loads_number(before: &[u8], number: u64) -> Option<usize> {
    let value = u32::try_from(number).ok()?.to_le_bytes();
    let front = before.strip_suffix(&value)?;
    if front.ends_with(&[0x48, 0xc7, 0xc0]) {
        return Some(7);
    }
    let front = front.strip_suffix(&[0xb8])?;
    // A prefix would make it another register's load.
    if front.last().is_some_and(|byte| byte & 0xf0 == 0x40) {
        return None;
    }
    // The byte taken for `mov` may be the displacement of an instruction with this immediate.
    let long = |back: usize| front.len().checked_sub(back).is_some_and(|at| matches!(front[at], 0xc7 | 0x81 | 0x69 | 0xf7));
    (!(long(2) || long(3) || long(5) || long(6))).then_some(5)
}

/// `mov 8(%rsp),%r9`, with which `syscall(3)` of the GNU C library loads its last argument.
fn fixed(before: &[u8]) -> Option<usize> {
    before.ends_with(&[0x4c, 0x8b, 0x4c, 0x24, 0x08]).then_some(5)
}

/// One instruction of three bytes or more that means the same anywhere. Two short ones will not do: a thread may be between
/// them when the jump is written.
fn following(behind: &[u8], back: u64) -> Option<Shape> {
    let len = movable(behind)?;
    Some(Shape { start: back - 2, len: 5, displaced: behind[..len].to_vec(), behind: true })
}

/// The length of the first instruction, if it is known and neither jumps nor counts from where it is.
fn movable(code: &[u8]) -> Option<usize> {
    const REGISTERS: u8 = 0xc0;
    let registers = |at: usize| code.get(at).is_some_and(|modrm| modrm & REGISTERS == REGISTERS);
    match *code {
        // cmp $imm32,%rax; cmp $imm32,%eax
        [0x48, 0x3d, _, _, _, _, ..] => Some(6),
        [0x3d, _, _, _, _, ..] => Some(5),
        // Moves, comparisons, tests between registers.
        [0x48..=0x4f, 0x89 | 0x8b | 0x85 | 0x39 | 0x3b | 0x31 | 0x63, ..] if registers(2) => Some(3),
        // Operations with an immediate byte on a register.
        [0x48..=0x4f, 0x83, _, _, ..] if registers(2) => Some(4),
        [0x83, _, _, ..] if registers(1) => Some(3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(code: &[u8], number: u64) -> Option<Shape> {
        let at = code.windows(2).position(|pair| pair == [0x0f, 0x05]).unwrap() + 2;
        find(code, at, 0x1000, number)
    }

    #[test]
    fn a_number_that_is_loaded_just_before() {
        let found = shape(&[0x90, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3], 39).unwrap();
        assert_eq!(found, Shape { start: 0xff9, len: 5, displaced: vec![0xb8, 39, 0, 0, 0], behind: false });
        let found = shape(&[0x90, 0x48, 0xc7, 0xc0, 39, 0, 0, 0, 0x0f, 0x05, 0xc3], 39).unwrap();
        assert_eq!((found.start, found.len), (0xff7, 7));
        assert_eq!(shape(&[0x90, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3], 40), None, "another call's number");
    }

    #[test]
    fn what_only_looks_like_a_load_is_left_alone() {
        let with = |front: &[u8]| shape(&[front, &[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3]].concat(), 39);
        assert_eq!(with(&[0x90, 0x41]), None, "mov $39,%r8d");
        assert_eq!(with(&[0x90, 0xc7, 0x45]), None, "movl $39,-0x48(%rbp)");
        assert_eq!(with(&[0x90, 0xc7, 0x44, 0x24]), None, "movl $39,-0x48(%rsp)");
        assert_eq!(with(&[0x90, 0xc7, 0x85, 0, 0, 0]), None, "movl $39,0xb8000000(%rbp)");
        assert!(with(&[0x90, 0x90]).is_some());
    }

    #[test]
    fn shapes_of_the_libraries() {
        // GNU: syscall(3).
        let found = shape(&[0x4d, 0x89, 0xc8, 0x4c, 0x8b, 0x4c, 0x24, 8, 0x0f, 5, 0x48, 0x3d, 1, 0xf0, 0xff, 0xff], 1).unwrap();
        assert_eq!((found.start, found.len, found.behind), (0xff9, 5, false));
        // GNU: read(3). Its number is the result of xor.
        let found = shape(&[0x74, 0x13, 0x31, 0xc0, 0x0f, 5, 0x48, 0x3d, 0, 0xf0, 0xff, 0xff, 0x77, 0x4f], 0).unwrap();
        assert_eq!(found, Shape { start: 0xffe, len: 5, displaced: vec![0x48, 0x3d, 0, 0xf0, 0xff, 0xff], behind: true });
        // musl: mov %rax,%rdi; call.
        let found = shape(&[0x49, 0x89, 0xca, 0x0f, 5, 0x48, 0x89, 0xc7, 0xe8, 0, 0, 0, 0], 0).unwrap();
        assert_eq!(found.displaced, [0x48, 0x89, 0xc7]);
        // A jump counts from where it is.
        assert_eq!(shape(&[0x31, 0xc0, 0x0f, 5, 0x74, 0x10, 0x90, 0x90], 0), None);
        assert_eq!(shape(&[0x31, 0xc0, 0x0f, 5, 0xc3, 0x90, 0x90, 0x90], 0), None);
    }
}
