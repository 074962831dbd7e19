//! Which instructions stand around a `syscall`, and which of them can make room for a jump.
//!
//! Instructions cannot be told by looking backwards for sure. What is taken for `mov $n,%eax` must load the very number the
//! call was made with, and must not look like the end of a longer instruction; the few others are whole ones that libraries
//! have there, of five bytes that nothing else ends with. From there on to the call every byte must belong to an instruction
//! that is known and means the same anywhere.

/// How many bytes before the end of the call are looked at.
pub const BEFORE: usize = 32;

/// How many behind.
pub const BEHIND: usize = 16;

/// How many bytes of instructions may be between the one that makes room and the call: what is before that one must be seen
/// too, and a slot has room for so many.
const BETWEEN: usize = 16;

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
    in_front(before, 0, back, number)
        .or_else(|| following(behind, back))
        .or_else(|| (2..=BETWEEN).find_map(|between| in_front(before, between, back, number)))
}

/// An instruction of five bytes or more, and `between` bytes of others from there to the call. These stay where they are, for
/// a thread that is among them when the jump is written.
fn in_front(before: &[u8], between: usize, back: u64, number: u64) -> Option<Shape> {
    let (front, mut others) = before.split_at_checked(before.len().checked_sub(between)?)?;
    while !others.is_empty() {
        others = others.get(movable(others)?..)?;
    }
    let len = loads_number(front, number).or_else(|| fixed(front))?;
    let displaced = before[front.len() - len..].to_vec();
    Some(Shape { start: back - 2 - displaced.len() as u64, len, displaced, behind: false })
}

/// `mov $n,%eax` or `mov $n,%rax`: its length.
fn loads_number(before: &[u8], number: u64) -> Option<usize> {
    let value = u32::try_from(number).ok()?.to_le_bytes();
    let front = before.strip_suffix(&value)?;
    if front.ends_with(&[0x48, 0xc7, 0xc0]) {
        return Some(7);
    }
    let front = front.strip_suffix(&[0xb8])?;
    (!goes_on(front)).then_some(5)
}

/// Whether `front`, a byte `b8` and the four bytes of a number may end with an instruction that begins in `front`.
fn goes_on(front: &[u8]) -> bool {
    let at = |back: usize| front.len().checked_sub(back).and_then(|at| front.get(at).copied()).unwrap_or(0);
    // A prefix, with which it is another register's load.
    let prefix = at(1) & 0xf0 == 0x40 || at(2) == 0xd5;
    // `movabs`, which has the number as the upper half of its value.
    let wide = at(5) & 0xf8 == 0x48 && at(4) & 0xf8 == 0xb8;
    // The number is a displacement, and what tells the registers is before it: `b8`, or that and another byte.
    let access = |opcode: u8| matches!(opcode, 0x63 | 0x89 | 0x8b | 0x8d);
    let displacement = access(at(1)) || access(at(2)) && at(1) & 0xc7 == 0x84;
    // The number is an operand, and before it come `back` bytes which tell where the other is.
    let operand = |back: usize| {
        let (modrm, sib) = (at(back), at(back - 1));
        let len = match (modrm >> 6, modrm & 7) {
            (0, 4) if back > 1 && sib & 7 == 5 => 6,
            (0, 4) => 2,
            (0, 5) | (2, 0..4 | 5..) => 5,
            (1, 4) => 3,
            (1, _) => 2,
            (2, 4) => 6,
            _ => 1,
        };
        let operation = match at(back + 1) {
            0x69 | 0x81 => true,
            // mov, and test, which has two codes: what else begins so has no operand here.
            0xc7 => modrm & 0x38 == 0,
            0xf7 => modrm & 0x30 == 0,
            _ => false,
        };
        operation && len == back + 1
    };
    prefix || wide || displacement || [1, 2, 4, 5].into_iter().any(operand)
}

/// Five bytes that are a whole instruction of the libraries.
fn fixed(before: &[u8]) -> Option<usize> {
    let found = match *before {
        // With the prefix of AVX-512, or that of APX, they are something else.
        [.., 0x62, _, _, _, _, _, _, _] | [.., 0xd5, _, _, _, _, _] => false,
        // mov 8*n(%rsp),%reg: the last argument, in syscall(3) of the GNU C library and in musl; the number, in Go's calls that
        // cannot fail, and in what most calls of the GNU C library go through since 2.41.
        [.., 0x48 | 0x4c, 0x8b, modrm, 0x24, at @ 0..0x80] => modrm & 0xc7 == 0x44 && at % 8 == 0,
        // mov %r11,8(%rsp): in what all calls of musl go through that a thread can be cancelled in, and those of programs with
        // several threads on the GNU C library since 2.41.
        [.., 0x4c, 0x89, 0x5c, 0x24, 0x08] => true,
        _ => false,
    };
    found.then_some(5)
}

/// One instruction of three bytes or more that means the same anywhere. Two short ones will not do: a thread may be between
/// them when the jump is written.
fn following(behind: &[u8], back: u64) -> Option<Shape> {
    let len = movable(behind).filter(|len| *len >= 3)?;
    Some(Shape { start: back - 2, len: 5, displaced: behind[..len].to_vec(), behind: true })
}

/// The length of the first instruction, if it is known, uses registers and the stack alone, and neither jumps nor counts from
/// where it is.
fn movable(code: &[u8]) -> Option<usize> {
    const REGISTERS: u8 = 0xc0;
    let (bits, prefix) = match code.first()? {
        byte @ 0x40..=0x4f => (byte & 15, 1),
        _ => (0, 0),
    };
    let (wide, numbered) = (bits & 8 != 0, bits & 3 != 0);
    let rest = &code[prefix..];
    let registers = rest.get(1).is_some_and(|modrm| modrm & REGISTERS == REGISTERS);
    let len = match *rest {
        // cmp $imm32,%rax; cmp $imm32,%eax
        [0x3d, ..] => 5,
        // Moves, comparisons, tests between registers.
        [0x31 | 0x39 | 0x3b | 0x63 | 0x85 | 0x89 | 0x8b, ..] if registers => 2,
        // Moves between a register and the stack: disp8(%rsp), disp8(%rbp).
        [0x89 | 0x8b, modrm, 0x24, ..] if modrm & 0xc7 == 0x44 && !numbered => 4,
        [0x89 | 0x8b, modrm, ..] if modrm & 0xc7 == 0x45 && !numbered => 3,
        // Operations with an immediate byte on a register.
        [0x83, ..] if registers => 3,
        // mov $imm32,%reg
        [0xb8..=0xbf, ..] if !wide => 5,
        [0xc7, 0xc0..=0xc7, ..] => 6,
        _ => return None,
    };
    (code.len() >= prefix + len).then_some(prefix + len)
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
        assert_eq!(with(&[0x90, 0xc7, 0x85, 0, 0, 0]), None, "movl $39,-0x48000000(%rbp)");
        assert_eq!(with(&[0x90, 0xc7, 0x84, 0x24, 0, 0, 0]), None, "movl $39,-0x48000000(%rsp)");
        assert_eq!(with(&[0x90, 0xc7, 0x05, 0, 0, 0]), None, "movl $39,-0x48000000(%rip)");
        assert_eq!(with(&[0x90, 0xc7, 0x04, 0x25, 0, 0, 0]), None, "movl $39,-0x48000000");
        assert_eq!(with(&[0x90, 0xc7, 0x04]), None, "movl $39,(%rax,%rdi,4)");
        assert_eq!(with(&[0x90, 0x81, 0x7d]), None, "cmpl $39,-0x48(%rbp)");
        assert_eq!(with(&[0x69, 0x45]), None, "imul $39,-0x48(%rbp),%eax");
        assert_eq!(with(&[0xf7, 0x45]), None, "testl $39,-0x48(%rbp)");
        assert_eq!(with(&[0x49, 0xbb, 0, 0, 0]), None, "movabs $0x27b8000000,%r11");
        assert_eq!(with(&[0x41, 0x8b]), None, "mov 39(%r8),%edi");
        assert_eq!(with(&[0x41, 0x8b, 0xbc]), None, "mov 39(%r8,%rdi,4),%edi");
        // These end before it.
        assert!(with(&[0x90, 0x90]).is_some());
        assert!(with(&[0x49, 0xc7, 0xc0, 0, 0, 0, 0]).is_some(), "mov $0,%r8");
        assert!(with(&[0x48, 0xc7, 0xc2, 1, 0, 0, 0]).is_some(), "mov $1,%rdx");
        assert!(with(&[0x89, 0xc7, 0x8b, 0x74, 0x24, 8]).is_some(), "mov %eax,%edi; mov 8(%rsp),%esi");
        assert!(with(&[0x89, 0xc7]).is_some(), "mov %eax,%edi");
    }

    #[test]
    fn instructions_between_the_number_and_the_call() {
        let load = [0xb8, 13, 0, 0, 0];
        let with = |between: &[u8]| shape(&[&[0x90][..], &load, between, &[0x0f, 0x05, 0xc3]].concat(), 13);
        // mov %r12,%rdi; mov %edx,%edx; or $7,%esi
        let between = [0x4c, 0x89, 0xe7, 0x89, 0xd2, 0x83, 0xce, 7];
        let displaced = [&load[..], &between].concat();
        assert_eq!(with(&between), Some(Shape { start: 0x1000 - 2 - 13, len: 5, displaced, behind: false }));
        // xor %edx,%edx; mov $2,%edi
        assert!(with(&[0x31, 0xd2, 0xbf, 2, 0, 0, 0]).is_some());
        // mov $8,%r10d; mov $-9,%rdi
        assert!(with(&[0x41, 0xba, 8, 0, 0, 0, 0x48, 0xc7, 0xc7, 0xf7, 0xff, 0xff, 0xff]).is_some());
        assert_eq!(with(&[0x48, 0x8d, 0x35, 0, 0, 0, 0]), None, "lea 0(%rip),%rsi");
        assert_eq!(with(&[0x74, 0]), None, "a jump");
        assert_eq!(with(&[0x48, 0x89, 0x1c, 0x24]), None, "mov %rbx,(%rsp)");
        assert_eq!(with(&[0x48, 0x89]), None, "half an instruction");
        assert_eq!(with(&[0x89, 0xd2].repeat(BETWEEN / 2 + 1)), None, "too much for a slot");
        // The instruction behind has room as well, and is known for sure.
        let code = [&load[..], &[0x89, 0xd2, 0x0f, 0x05, 0x48, 0x89, 0xc7]].concat();
        assert!(shape(&code, 13).unwrap().behind);
    }

    #[test]
    fn shapes_of_the_libraries() {
        let start = |code: &[u8], number: u64| shape(code, number).map(|found| (found.start, found.displaced.len()));
        // GNU: syscall(3).
        let found =
            shape(&[0x4d, 0x89, 0xc8, 0x4c, 0x8b, 0x4c, 0x24, 8, 0x0f, 5, 0x48, 0x3d, 1, 0xf0, 0xff, 0xff], 1).unwrap();
        assert_eq!((found.start, found.len, found.behind), (0xff9, 5, false));
        // GNU: read(3). Its number is the result of xor.
        let found = shape(&[0x74, 0x13, 0x31, 0xc0, 0x0f, 5, 0x48, 0x3d, 0, 0xf0, 0xff, 0xff, 0x77, 0x4f], 0).unwrap();
        assert_eq!(
            found,
            Shape { start: 0xffe, len: 5, displaced: vec![0x48, 0x3d, 0, 0xf0, 0xff, 0xff], behind: true }
        );
        // musl: mov %rax,%rdi; call.
        let found = shape(&[0x49, 0x89, 0xca, 0x0f, 5, 0x48, 0x89, 0xc7, 0xe8, 0, 0, 0, 0], 0).unwrap();
        assert_eq!(found.displaced, [0x48, 0x89, 0xc7]);
        // musl, GNU 2.41: mov 16(%rsp),%r9; mov %r11,8(%rsp); syscall; ret
        let code = [0x4c, 0x8b, 0x4c, 0x24, 16, 0x4c, 0x89, 0x5c, 0x24, 8, 0x0f, 5, 0xc3];
        assert_eq!(start(&code, 0), Some((0xff9, 5)));
        // GNU 2.41: mov 16(%rsp),%rax; syscall; pop %rbx; ret
        assert_eq!(start(&[0x48, 0x8b, 0x44, 0x24, 16, 0x0f, 5, 0x5b, 0xc3], 0), Some((0xff9, 5)));
        assert_eq!(start(&[0x48, 0x8b, 0x44, 0x24, 17, 0x0f, 5, 0x5b, 0xc3], 0), None);
        assert_eq!(start(&[0x62, 0xf2, 0x7d, 0x48, 0x8b, 0x44, 0x24, 16, 0x0f, 5, 0x5b, 0xc3], 0), None, "vpcompressd");
        // musl, small: mov 8(%rsp),%r9; mov %rcx,%rdx; syscall; ret
        assert_eq!(start(&[0x4c, 0x8b, 0x4c, 0x24, 8, 0x48, 0x89, 0xca, 0x0f, 5, 0xc3], 0), Some((0xff6, 8)));
        // musl: syscall; mov %eax,%r10d
        assert_eq!(shape(&[0x48, 0x89, 0xd6, 0x0f, 5, 0x41, 0x89, 0xc2], 5).unwrap().displaced, [0x41, 0x89, 0xc2]);
        // Go: mov $0,%r8; mov $281,%eax; syscall; mov %eax,32(%rsp)
        let code = [0x49, 0xc7, 0xc0, 0, 0, 0, 0, 0xb8, 25, 1, 0, 0, 0x0f, 5, 0x89, 0x44, 0x24, 32];
        assert_eq!(start(&code, 281), Some((0xff9, 5)));
        // Go: mov 8(%rsp),%rax; syscall; mov %rax,40(%rsp)
        let code = [0x48, 0x8b, 0x44, 0x24, 8, 0x0f, 5, 0x48, 0x89, 0x44, 0x24, 40];
        assert_eq!(start(&code, 39), Some((0xff9, 5)));
        // With frame pointers: mov -8(%rbp),%rbx; leave
        assert_eq!(
            shape(&[0x48, 0x8b, 0x45, 16, 0x0f, 5, 0x48, 0x8b, 0x5d, 0xf8, 0xc9], 0).unwrap().displaced.len(),
            4
        );
        // mov %eax,28(%rsp)
        assert_eq!(shape(&[0x89, 0xd0, 0x0f, 5, 0x89, 0x44, 0x24, 28], 0).unwrap().displaced.len(), 4);
        assert_eq!(shape(&[0x89, 0xd0, 0x0f, 5, 0x41, 0x89, 0x44, 0x24, 28], 0), None, "mov %eax,28(%r12)");
        assert_eq!(shape(&[0x89, 0xd0, 0x0f, 5, 0x41, 0x89, 0x45, 28], 0), None, "mov %eax,28(%r13)");
        // A jump counts from where it is.
        assert_eq!(shape(&[0x31, 0xc0, 0x0f, 5, 0x74, 0x10, 0x90, 0x90], 0), None);
        assert_eq!(shape(&[0x31, 0xc0, 0x0f, 5, 0xc3, 0x90, 0x90, 0x90], 0), None);
    }
}
