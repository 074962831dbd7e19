use super::*;
use crate::netstack::tcp::segment::FIN;

const MSS: usize = 1000;
/// Our first byte's number, near the end of all numbers.
const START: u32 = u32::MAX - 20_000;

/// A sender and its clock, after a handshake with a round trip of 10 ms and a peer that offers 1 MB.
struct Case {
    sender: Sender,
    now: i64,
    next: u32,
}

fn segment(seq: u32, ack: u32, flags: u8, len: usize) -> Segment {
    Segment { source: 1, destination: 2, seq, ack, flags, header_len: 20, len }
}

/// The header of an acknowledgement with a window of 1 MB (scaled by 16) and ranges beyond `ack`, from [`START`] on.
fn header(window: u16, ranges: &[(u32, u32)]) -> Vec<u8> {
    let mut header = vec![0; 20];
    header[14..16].copy_from_slice(&window.to_be_bytes());
    if !ranges.is_empty() {
        header.extend([1, 1, 5, 2 + 8 * ranges.len() as u8]);
        for (start, end) in ranges {
            header.extend(START.wrapping_add(*start).to_be_bytes());
            header.extend(START.wrapping_add(*end).to_be_bytes());
        }
    }
    header
}

impl Case {
    fn new(control: Control) -> Case {
        let mut sender = Sender::new(control, MSS);
        sender.sending(&segment(START.wrapping_sub(1), 0, SYN, 0), 0);
        let mut syn = header(u16::MAX, &[]);
        syn.extend([1, 3, 3, 4]);
        let answer = segment(7, START, SYN | ACK, 0);
        assert_eq!(sender.received(&answer, &syn, 10_000), Feed::Pass);
        assert_eq!((sender.round_trip().0, sender.flight()), (10_000, 0));
        let mut case = Case { sender, now: 10_000, next: START };
        assert_eq!(case.ack(0, &[]), Feed::Pass);
        case
    }

    /// Sends segments until the window is used up; how many those were.
    fn fill(&mut self) -> usize {
        let mut sent = 0;
        while self.sender.flight() + MSS <= self.sender.wanted() {
            self.sender.sending(&segment(self.next, 8, ACK, MSS), self.now);
            self.next = self.next.wrapping_add(MSS as u32);
            sent += 1;
        }
        sent
    }

    fn ack(&mut self, bytes: u32, ranges: &[(u32, u32)]) -> Feed {
        self.sender.received(&segment(8, START.wrapping_add(bytes), ACK, 0), &header(u16::MAX, ranges), self.now)
    }

    /// Sends the first segment again, as the machine does when it is told to.
    fn resend(&mut self) {
        assert!(self.sender.wants_resend());
        let first = self.sender.first().unwrap();
        self.sender.sending(&segment(first, 8, ACK, MSS), self.now);
        assert!(!self.sender.wants_resend());
    }
}

#[test]
fn ten_segments_then_twice_as_many() {
    let mut case = Case::new(Control::Cubic);
    assert_eq!(case.fill(), 10);
    case.now += 10_000;
    for n in 1..=10 {
        assert_eq!(case.ack(n * 1000, &[]), Feed::Pass);
        assert_eq!(case.fill(), 2);
    }
    assert_eq!(case.sender.shown(), (20_000, None, 0));
}

#[test]
fn a_lost_segment_is_sent_again_and_the_window_shrinks() {
    let mut case = Case::new(Control::Reno);
    case.fill();
    case.now += 10_000;
    // The third segment is lost.
    assert_eq!(case.ack(2000, &[]), Feed::Pass);
    assert_eq!(case.fill(), 4);
    assert_eq!(case.ack(2000, &[(3000, 4000)]), Feed::Absorb);
    assert_eq!(case.ack(2000, &[(3000, 5000)]), Feed::Absorb);
    assert_eq!(case.sender.shown().2, 1);
    assert_eq!(case.fill(), 2, "one for each of the first two");
    assert_eq!(case.ack(2000, &[(3000, 6000)]), Feed::Absorb);
    case.resend();
    let (window, threshold, state) = case.sender.shown();
    assert_eq!((window, threshold, state), (7000, Some(7000), 3));
    // What arrives lets about half as much follow.
    let mut sent = 0;
    for end in 7..=14 {
        case.ack(2000, &[(3000, end * 1000)]);
        sent += case.fill();
    }
    assert!((3..=5).contains(&sent), "{sent}");
    assert_eq!(case.sender.sacked(), 11_000);
    case.now += 10_000;
    assert_eq!(case.ack(14_000, &[]), Feed::Pass);
    assert!(!case.sender.wants_resend() || case.sender.shown().2 == 3);
}

#[test]
fn every_hole_is_filled_in_its_turn() {
    let mut case = Case::new(Control::Cubic);
    case.fill();
    case.now += 10_000;
    // The first and the third are lost.
    case.ack(0, &[(1000, 2000)]);
    case.ack(0, &[(3000, 4000), (1000, 2000)]);
    case.ack(0, &[(3000, 5000), (1000, 2000)]);
    case.resend();
    case.ack(0, &[(3000, 10_000), (1000, 2000)]);
    assert!(!case.sender.wants_resend());
    case.now += 10_000;
    assert_eq!(case.ack(2000, &[(3000, 10_000)]), Feed::Pass);
    case.resend();
    assert_eq!(case.sender.shown().2, 3);
    case.now += 10_000;
    case.fill();
    let end = case.next.wrapping_sub(START);
    case.ack(end, &[]);
    assert_eq!((case.sender.shown().2, case.sender.sacked(), case.sender.flight()), (0, 0, 0));
}

#[test]
fn without_selective_acknowledgements_copies_do() {
    let mut case = Case::new(Control::Reno);
    case.fill();
    case.now += 10_000;
    let feeds: Vec<Feed> = (0..3).map(|_| case.ack(0, &[])).collect();
    assert_eq!(feeds, [Feed::Absorb; 3]);
    case.resend();
    case.now += 10_000;
    case.ack(4000, &[]);
    case.resend();
    assert_eq!(case.sender.shown().2, 3, "until all is there that was under way");
}

#[test]
fn what_is_no_copy_is_passed_on() {
    let mut case = Case::new(Control::Reno);
    case.fill();
    let window = case.sender.received(&segment(8, START, ACK, 0), &header(1000, &[]), case.now);
    let data = case.sender.received(&segment(8, START, ACK, 5), &header(1000, &[]), case.now);
    let end = case.sender.received(&segment(8, START, ACK | FIN, 0), &header(1000, &[]), case.now);
    let lie = case.sender.received(&segment(8, START.wrapping_add(99_999), ACK, 0), &header(1000, &[]), case.now);
    assert_eq!([window, data, end, lie], [Feed::Pass; 4]);
    assert_eq!(case.sender.shown().2, 0);
    assert_eq!(case.sender.patch(), 625, "ten segments in units of sixteen");
}

#[test]
fn silence_makes_everything_lost() {
    let mut case = Case::new(Control::Reno);
    case.fill();
    let deadline = case.sender.deadline().unwrap();
    assert_eq!(deadline - case.now, 10_000 + 200_000);
    case.now = deadline;
    case.sender.timed_out(case.now);
    assert_eq!((case.sender.shown(), case.sender.flight()), ((1000, Some(5000), 4), 0));
    assert_eq!(case.sender.deadline(), None);
    // Back to the first.
    case.sender.sending(&segment(START, 8, ACK, MSS), case.now);
    assert_eq!(case.sender.deadline().map(|deadline| deadline - case.now), Some(420_000));
    // Copies that come of what is sent again mean nothing.
    for _ in 0..5 {
        case.ack(0, &[]);
    }
    assert!(!case.sender.wants_resend());
    case.now += 10_000;
    case.ack(1000, &[]);
    assert_eq!(case.sender.shown().0, 2000);
    assert_eq!(case.sender.round_trip().0, 10_000, "what was sent twice says nothing");
    // It had the rest.
    case.ack(10_000, &[]);
    assert_eq!((case.sender.flight(), case.sender.deadline()), (0, None));
}

#[test]
fn the_machines_own_timer_is_noticed() {
    let mut case = Case::new(Control::Cubic);
    case.fill();
    case.now += 1_000_000;
    case.sender.sending(&segment(START, 8, ACK, 4 * MSS), case.now);
    assert_eq!((case.sender.shown().0, case.sender.flight()), (1000, 4000));
}

#[test]
fn the_window_is_never_more_than_the_peer_offers_nor_nothing_where_it_offers_some() {
    let mut case = Case::new(Control::Cubic);
    case.sender.received(&segment(8, START, ACK, 0), &header(10, &[]), case.now);
    assert_eq!((case.sender.patch(), case.sender.correction(10_000)), (10, Some(10)));
    case.sender.told(Some(10));
    assert_eq!(case.sender.correction(10_000), None);
    case.sender.received(&segment(8, START, ACK, 0), &header(0, &[]), case.now);
    assert_eq!(case.sender.patch(), 0);
    // A byte to hear of a window is not under way as others are.
    case.sender.sending(&segment(START, 8, ACK, 1), case.now);
    assert_eq!((case.sender.flight(), case.sender.deadline()), (0, None));
    assert_eq!(case.ack(1, &[]), Feed::Pass);
    assert_eq!(case.sender.first(), Some(START.wrapping_add(1)));
}
