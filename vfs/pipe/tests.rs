use super::*;
use crate::io::SliceSink;

fn pipe() -> (Arc<PipeEnd>, Arc<PipeEnd>) {
    Pipe::create((0, 0), 0)
}

fn write(end: &PipeEnd, bytes: &[u8]) -> Result<usize> {
    end.write(0, &mut &bytes[..])
}

fn read(end: &PipeEnd, room: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0; room];
    let n = end.read(0, &mut SliceSink::new(&mut buf))?;
    buf.truncate(n);
    Ok(buf)
}

#[test]
fn bytes_come_out_as_they_went_in() {
    let (reader, writer) = pipe();
    assert_eq!(read(&reader, 1), Err(Errno::EAGAIN));
    let bytes: Vec<u8> = (0..50_000u32).map(|i| (i * 7 % 251) as u8).collect();
    for part in bytes.chunks(777) {
        assert_eq!(write(&writer, part), Ok(part.len()));
    }
    let mut out = Vec::new();
    while out.len() < bytes.len() {
        out.extend(read(&reader, 1313).expect("not empty yet"));
    }
    assert_eq!(out, bytes);
    assert!(reader.pipe.is_empty());
}

/// The numbers are what Linux 6.18 gives.
#[test]
fn slots_fill_as_on_linux() {
    let (reader, writer) = pipe();
    assert_eq!(write(&writer, &[1; 4097]), Ok(4097));
    assert_eq!(write(&writer, &[2; 200_000]), Ok(60_736));
    assert_eq!(write(&writer, &[3]), Err(Errno::EAGAIN));
    assert_eq!((reader.poll(), writer.poll()), (Events::READ, Events::empty()));
    read(&reader, 4095).expect("full");
    assert_eq!(writer.poll(), Events::empty(), "the first page is not free yet");
    read(&reader, 1).expect("full");
    assert_eq!(writer.poll(), Events::WRITE);
    assert_eq!(writer.pipe.set_size(4096, false), Err(Errno::EBUSY));
    assert_eq!(writer.pipe.set_size(u32::MAX, false), Err(Errno::EINVAL));
    assert_eq!(writer.pipe.set_size(100_000, false), Ok(131_072));
    assert_eq!(writer.pipe.set_size(2 << 20, false), Err(Errno::EPERM));
    assert_eq!(writer.pipe.set_size(2 << 20, true), Ok(2 << 20));
    assert_eq!(writer.pipe.size(), 2 << 20);
}

#[test]
fn single_bytes_fill_it_to_the_last() {
    let (reader, writer) = pipe();
    let n = (0..).take_while(|_| write(&writer, b"x").is_ok()).count();
    assert_eq!(n, 65_536);
    assert_eq!(read(&reader, 100_000).map(|bytes| bytes.len()), Ok(65_536));
}

#[test]
fn a_write_of_pipe_buf_goes_in_whole_or_not_at_all() {
    let (reader, writer) = pipe();
    assert_eq!(write(&writer, &[0; 65_536 - 100]), Ok(65_536 - 100));
    assert_eq!(write(&writer, &[0; 101]), Err(Errno::EAGAIN));
    assert_eq!(write(&writer, &[0; 100]), Ok(100));
    read(&reader, 4096).expect("full");
    assert_eq!(write(&writer, &[0; 4096]), Ok(4096));
}

#[test]
fn closing_an_end_shows_at_the_other() {
    let (reader, writer) = pipe();
    write(&writer, b"ab").expect("room");
    drop(writer);
    assert_eq!(reader.poll(), Events::READ | Events::HUP);
    assert_eq!(read(&reader, 9), Ok(b"ab".to_vec()));
    assert_eq!((read(&reader, 9), reader.poll()), (Ok(vec![]), Events::HUP));
    let (reader, writer) = pipe();
    drop(reader);
    assert_eq!(writer.poll(), Events::WRITE | Events::ERR);
    assert_eq!(write(&writer, b"a"), Err(Errno::EPIPE));
    assert_eq!(write(&writer, b""), Ok(0));
}

#[test]
fn packets_keep_their_boundaries() {
    let (reader, writer) = Pipe::create((0, 0), libc::O_DIRECT);
    assert_eq!(write(&writer, &[1; 5000]), Ok(5000));
    assert_eq!(write(&writer, &[2; 10]), Ok(10));
    assert_eq!(read(&reader, 10_000).map(|p| p.len()), Ok(4096));
    assert_eq!(read(&reader, 100).map(|p| p.len()), Ok(100), "the rest of the packet is lost");
    assert_eq!(read(&reader, 100), Ok(vec![2; 10]));
    assert_eq!(read(&reader, 100), Err(Errno::EAGAIN));
    let n = (0..).take_while(|_| write(&writer, b"x").is_ok()).count();
    assert_eq!(n, 16, "one slot a packet");
    writer.flags_changed(0).expect("always");
    read(&reader, 1).expect("full");
    assert_eq!(write(&writer, b"yy"), Ok(2), "a stream again");
}

#[test]
fn a_fault_part_way_keeps_what_was_copied() {
    struct Faulty(usize);
    impl Source for Faulty {
        fn left(&self) -> usize {
            10_000
        }
        fn peek(&mut self, buf: &mut [u8]) -> Result<usize> {
            let n = buf.len().min(std::mem::take(&mut self.0));
            if n == 0 { Err(Errno::EFAULT) } else { Ok(n) }
        }
        fn skip(&mut self, _n: usize) {}
    }
    let (reader, writer) = pipe();
    assert_eq!(writer.write(0, &mut Faulty(0)), Err(Errno::EFAULT));
    assert_eq!(writer.write(0, &mut Faulty(5000)), Ok(5000));
    assert_eq!(reader.pipe.len(), 5000);
    // The odd bytes join the last page first, and the fault comes within them.
    assert_eq!(writer.write(0, &mut Faulty(0)), Err(Errno::EFAULT));
    assert_eq!(reader.pipe.len(), 5000);
}

#[test]
fn fifos_wait_for_the_other_side() {
    let fifo = FifoState::default();
    assert_eq!(fifo.open(libc::O_WRONLY | libc::O_NONBLOCK).err(), Some(Errno::ENXIO));
    let reader = fifo.open(libc::O_RDONLY).expect("waits");
    assert!(!reader.is_ready());
    let writer = fifo.open(libc::O_WRONLY).expect("a reader is there");
    assert!(writer.is_ready() && reader.is_ready());
    drop(writer);
    assert!(reader.is_ready(), "the writer came, though it has gone again");
    let reader = reader.into_file();
    assert_eq!(reader.poll(), Events::HUP);
    drop(reader);
    assert_eq!(
        fifo.open(libc::O_WRONLY | libc::O_NONBLOCK).err(),
        Some(Errno::ENXIO),
        "an interrupted open leaves nothing"
    );
}

#[test]
fn a_fifo_opened_without_waiting_hangs_up_only_after_a_writer() {
    let fifo = FifoState::default();
    let reader = fifo.open(libc::O_RDONLY | libc::O_NONBLOCK).expect("never waits");
    assert!(reader.is_ready());
    let reader = reader.into_file();
    assert_eq!(reader.poll(), Events::empty());
    let writer = fifo.open(libc::O_WRONLY | libc::O_NONBLOCK).expect("a reader is there").into_file();
    assert_eq!(reader.poll(), Events::empty());
    writer.write(0, &mut &b"x"[..]).expect("room");
    drop(writer);
    assert_eq!(reader.poll(), Events::READ | Events::HUP);
    drop(reader);
    let both = fifo.open(libc::O_RDWR).expect("never waits").into_file();
    assert_eq!(both.poll(), Events::WRITE, "what nobody read is gone with the last end");
}

#[test]
fn tee_copies_and_splice_moves() {
    let (reader, writer) = pipe();
    let (reader2, writer2) = pipe();
    let (from, to) = (reader.pipe(), writer2.pipe());
    assert_eq!(from.transfer(to, 10, true), Err(Errno::EAGAIN));
    write(&writer, b"hello").expect("room");
    assert_eq!(from.transfer(to, 3, true), Ok(3));
    assert_eq!(from.transfer(to, 100, false), Ok(5));
    assert_eq!(read(&reader2, 100), Ok(b"helhello".to_vec()));
    assert_eq!(from.transfer(from, 1, false), Err(Errno::EINVAL));
    drop(writer);
    assert_eq!(from.transfer(to, 10, true), Ok(0));
    let taken = to.splice_in(100_000, &mut |fits| Ok(vec![7; fits]));
    assert_eq!(taken, Ok(65_536));
    assert_eq!(to.splice_room(), Err(Errno::EAGAIN));
    let seen = reader2.pipe().splice_out(5000, &mut |slices| Ok(slices.iter().map(|s| s.len()).sum::<usize>() - 1));
    assert_eq!(seen, Ok(4999));
    drop(reader2);
    assert_eq!(to.splice_room(), Err(Errno::EPIPE));
}

#[test]
#[ignore = "a measurement, not a check"]
fn cost_of_one_byte() {
    let (reader, writer) = pipe();
    let start = std::time::Instant::now();
    let rounds = 1_000_000u32;
    for _ in 0..rounds {
        writer.write(0, &mut &b"x"[..]).expect("room");
        let mut buf = [0u8; 1];
        reader.read(0, &mut SliceSink::new(&mut buf)).expect("a byte");
    }
    println!("write + read of one byte: {:?}", start.elapsed() / rounds);
}
