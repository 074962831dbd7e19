use super::*;
use crate::netstack::tcp::segment::FIN;

const MSS: usize = 1000;
/// Our first byte's number, near the end of all numbers.
const START: u32 = u32::MAX - 20_000;
const ROUND_TRIP: i64 = 10_000;

/// A sender, its clock and its machine, after a handshake with a round trip of 10 ms and a peer that offers 1 MB.
struct Case {
    sender: Sender,
    now: i64,
    /// Where the machine is, and where its data ends, from [`START`] on.
    at: u32,
    data: u32,
}

fn segment(seq: u32, ack: u32, flags: u8, len: usize) -> Segment {
    Segment { source: 1, destination: 2, seq, ack, flags, header_len: 20, len }
}

/// The header of an acknowledgement with a window (scaled by 16) and ranges, from [`START`] on.
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
        Case::with(control, true)
    }

    /// `tells`: the peer acknowledges selectively.
    fn with(control: Control, tells: bool) -> Case {
        let mut sender = Sender::new(control, MSS, 1 << 20);
        sender.sending(&segment(START.wrapping_sub(1), 0, SYN, 0), 0);
        let mut syn = header(u16::MAX, &[]);
        syn.extend([1, 3, 3, 4]);
        if tells {
            syn.extend([1, 1, 4, 2]);
        }
        let answer = segment(7, START, SYN | ACK, 0);
        assert_eq!(sender.received(&answer, &syn, ROUND_TRIP), Feed::Pass);
        assert_eq!((sender.round_trip().0, sender.flight()), (ROUND_TRIP as u32, 0));
        let mut case = Case { sender, now: ROUND_TRIP, at: 0, data: u32::MAX / 2 };
        assert_eq!(case.ack(0, &[]), Feed::Pass);
        case
    }

    /// The machine sends what it may. What of that is on the wire: segments, from [`START`] on.
    fn fill(&mut self) -> Vec<u32> {
        let mut wire = Vec::new();
        for _ in 0..100_000 {
            if self.sender.must_go_back() {
                self.sender.goes_back();
                self.at = self.first();
            }
            let may = distance(self.sender.target(), START.wrapping_add(self.at)).min((self.data - self.at) as usize);
            if may == 0 {
                return wire;
            }
            self.send(may.min(MSS), &mut wire);
        }
        panic!("it never ends")
    }

    fn send(&mut self, len: usize, wire: &mut Vec<u32>) {
        let seq = START.wrapping_add(self.at);
        let ranges = match self.sender.sending(&segment(seq, 8, ACK, len), self.now) {
            Part::Whole => vec![(seq, seq.wrapping_add(len as u32))],
            Part::Ranges(ranges) => ranges,
        };
        self.at += len as u32;
        for (from, to) in ranges {
            let (from, to) = (from.wrapping_sub(START), to.wrapping_sub(START));
            wire.extend((from..to).step_by(MSS));
        }
    }

    fn first(&self) -> u32 {
        self.sender.first().unwrap().wrapping_sub(START)
    }

    fn ack(&mut self, bytes: u32, ranges: &[(u32, u32)]) -> Feed {
        let feed =
            self.sender.received(&segment(8, START.wrapping_add(bytes), ACK, 0), &header(u16::MAX, ranges), self.now);
        self.at = self.at.max(self.first());
        feed
    }
}

#[test]
fn ten_segments_then_twice_as_many() {
    let mut case = Case::new(Control::Cubic);
    assert_eq!(case.fill().len(), 10);
    case.now += ROUND_TRIP;
    for n in 1..=10 {
        assert_eq!(case.ack(n * 1000, &[]), Feed::Pass);
        assert_eq!(case.fill().len(), 2);
    }
    assert_eq!(case.sender.shown(), (20_000, None, 0));
}

#[test]
fn a_lost_segment_is_sent_again_and_the_window_shrinks() {
    let mut case = Case::new(Control::Reno);
    case.fill();
    case.now += ROUND_TRIP;
    // The third segment is lost.
    assert_eq!(case.ack(2000, &[]), Feed::Pass);
    assert_eq!(case.fill().len(), 4);
    assert_eq!(case.ack(2000, &[(3000, 4000)]), Feed::Absorb);
    assert_eq!(case.ack(2000, &[(3000, 5000)]), Feed::Absorb);
    assert_eq!(case.sender.shown().2, 1);
    assert_eq!(case.fill().len(), 2, "one for each of the first two");
    assert_eq!(case.ack(2000, &[(3000, 6000)]), Feed::Absorb);
    assert_eq!(case.fill()[0], 2000);
    assert_eq!(case.sender.shown(), (7000, Some(7000), 3));
    // What arrives lets about half as much follow.
    let sent: usize = (7..=14).map(|end| (case.ack(2000, &[(3000, end * 1000)]), case.fill().len()).1).sum();
    assert!((3..=5).contains(&sent), "{sent}");
    assert_eq!(case.sender.sacked(), 11_000);
    case.now += ROUND_TRIP;
    assert_eq!(case.ack(16_000, &[]), Feed::Pass);
    assert_eq!(case.sender.shown().2, 0);
}

#[test]
fn every_hole_is_filled_and_nothing_else() {
    let mut case = Case::new(Control::Cubic);
    case.data = 10_000;
    assert_eq!(case.fill().len(), 10);
    case.now += ROUND_TRIP;
    // The first, the third and the fourth are lost.
    case.ack(0, &[(1000, 2000)]);
    case.ack(0, &[(4000, 5000), (1000, 2000)]);
    case.ack(0, &[(4000, 6000), (1000, 2000)]);
    assert_eq!(case.fill(), [0, 2000]);
    case.ack(0, &[(4000, 7000), (1000, 2000)]);
    case.ack(0, &[(4000, 8000), (1000, 2000)]);
    case.ack(0, &[(4000, 9000), (1000, 2000)]);
    case.ack(0, &[(4000, 10_000), (1000, 2000)]);
    assert_eq!(case.fill(), [3000]);
    case.now += ROUND_TRIP;
    assert_eq!(case.ack(2000, &[(4000, 10_000)]), Feed::Pass);
    assert_eq!((case.fill(), case.sender.shown().2), (vec![], 3));
    case.ack(10_000, &[]);
    assert_eq!((case.sender.shown().2, case.sender.sacked(), case.sender.flight()), (0, 0, 0));
}

#[test]
fn without_selective_acknowledgements_copies_do() {
    let mut case = Case::with(Control::Reno, false);
    case.data = 10_000;
    case.fill();
    case.now += ROUND_TRIP;
    let feeds: Vec<Feed> = (0..3).map(|_| case.ack(0, &[])).collect();
    assert_eq!(feeds, [Feed::Absorb; 3]);
    assert_eq!(case.fill(), [0]);
    case.now += ROUND_TRIP;
    case.ack(4000, &[]);
    assert_eq!(case.fill(), [4000]);
    assert_eq!(case.sender.shown().2, 3, "until all is there that was under way");
}

#[test]
fn what_the_machine_must_know_is_passed_on() {
    let mut case = Case::new(Control::Reno);
    case.fill();
    let window = case.sender.received(&segment(8, START, ACK, 0), &header(1000, &[]), case.now);
    assert_eq!(window, Feed::Absorb, "another window alone does not mean anything arrived");
    let data = case.sender.received(&segment(8, START, ACK, 5), &header(1000, &[]), case.now);
    let end = case.sender.received(&segment(8, START, ACK | FIN, 0), &header(1000, &[]), case.now);
    let lie = case.sender.received(&segment(8, START.wrapping_add(99_999), ACK, 0), &header(1000, &[]), case.now);
    assert_eq!([data, end, lie], [Feed::Pass; 3]);
    assert_eq!(case.sender.shown().2, 0);
    let shift = case.sender.own_scale();
    assert_eq!(usize::from(case.sender.patch()) << shift, 10_000 >> shift << shift);
}

#[test]
fn silence_makes_everything_lost() {
    let mut case = Case::new(Control::Reno);
    case.data = 10_000;
    case.fill();
    let deadline = case.sender.deadline().unwrap();
    assert_eq!(deadline - case.now, ROUND_TRIP + 200_000);
    case.now = deadline;
    case.sender.timed_out(case.now);
    assert_eq!((case.sender.shown(), case.sender.flight()), ((1000, Some(5000), 4), 10_000));
    assert_eq!(case.fill(), [0]);
    assert_eq!(case.sender.deadline().map(|deadline| deadline - case.now), Some(420_000));
    // Copies that come of what is sent again mean nothing.
    for _ in 0..5 {
        case.ack(0, &[]);
    }
    assert_eq!(case.fill(), []);
    case.now += ROUND_TRIP;
    case.ack(1000, &[]);
    assert_eq!(case.sender.shown().0, 2000);
    assert_eq!(case.sender.round_trip().0, 10_000, "what was sent twice says nothing");
    assert_eq!(case.fill(), [1000, 2000]);
    // It had the rest.
    case.ack(10_000, &[]);
    assert_eq!((case.sender.flight(), case.sender.deadline(), case.sender.shown().2), (0, None, 0));
}

#[test]
fn the_machines_own_timer_is_noticed() {
    let mut case = Case::new(Control::Cubic);
    case.fill();
    case.now += 1_000_000;
    case.at = 0;
    let mut wire = Vec::new();
    case.send(4 * MSS, &mut wire);
    assert_eq!((case.sender.shown().0, wire), (1000, vec![0, 1000, 2000, 3000]));
}

#[test]
fn a_peer_that_forgets_gets_everything_again() {
    let mut case = Case::new(Control::Cubic);
    case.data = 10_000;
    case.fill();
    for end in 2..=10 {
        case.ack(0, &[(1000, end * 1000)]);
    }
    assert_eq!(case.fill(), [0]);
    case.now += ROUND_TRIP;
    // Had it told the truth it would have said 10000.
    case.ack(1000, &[]);
    assert_eq!(case.fill(), []);
    case.now = case.sender.deadline().unwrap();
    case.sender.timed_out(case.now);
    assert_eq!(case.fill(), [1000]);
    case.ack(2000, &[]);
    assert_eq!(case.fill(), [2000, 3000]);
}

#[test]
fn the_window_is_never_more_than_the_peer_offers_nor_nothing_where_it_offers_some() {
    let mut case = Case::new(Control::Cubic);
    let shown = |case: &Case| usize::from(case.sender.patch()) << case.sender.own_scale();
    case.sender.received(&segment(8, START, ACK, 0), &header(10, &[]), case.now);
    assert_eq!(shown(&case), 160);
    let field = case.sender.correction(10_000);
    assert_eq!(field, Some(case.sender.patch()));
    case.sender.told(field);
    assert_eq!(case.sender.correction(10_000), None);
    case.sender.received(&segment(8, START, ACK, 0), &header(0, &[]), case.now);
    assert_eq!(case.sender.patch(), 0);
    // A byte to hear of a window is not under way as others are.
    case.sender.sending(&segment(START, 8, ACK, 1), case.now);
    assert_eq!((case.sender.flight(), case.sender.deadline()), (0, None));
    assert_eq!(case.ack(1, &[]), Feed::Pass);
    assert_eq!(case.sender.first(), Some(START.wrapping_add(1)));
}

/// A peer that keeps what comes out of order.
#[derive(Default)]
struct Peer {
    next: u32,
    /// Latest first.
    beyond: Vec<(u32, u32)>,
}

impl Peer {
    fn takes(&mut self, at: u32) {
        let (mut start, mut end) = (at, at + MSS as u32);
        self.beyond.retain(|&(from, to)| {
            let apart = from > end || start > to;
            if !apart {
                (start, end) = (start.min(from), end.max(to));
            }
            apart
        });
        if start <= self.next {
            self.next = self.next.max(end);
        } else {
            self.beyond.insert(0, (start, end));
        }
    }
}

/// Sends 2000 segments, of which each is lost if `lost` says so; 100 segments a round trip at most arrive. How often
/// segments were lost, sent, and how many round trips and timeouts that took.
fn carry(tells: bool, mut lost: impl FnMut(u32) -> bool) -> [usize; 4] {
    const ALL: u32 = 2_000_000;
    let (mut case, mut peer) = (Case::with(Control::Cubic, tells), Peer::default());
    case.data = ALL;
    let [mut losses, mut sent, mut rounds, mut timeouts] = [0; 4];
    let mut wire = case.fill();
    while peer.next < ALL {
        rounds += 1;
        assert!(rounds < 10_000, "{peer_next} of it arrived", peer_next = peer.next);
        case.now += ROUND_TRIP;
        let mut next = Vec::new();
        for at in std::mem::take(&mut wire) {
            sent += 1;
            if lost(at) {
                losses += 1;
                continue;
            }
            peer.takes(at);
            let blocks = &peer.beyond[..if tells { peer.beyond.len().min(3) } else { 0 }];
            let blocks = blocks.to_vec();
            case.ack(peer.next, &blocks);
            next.extend(case.fill());
        }
        if next.is_empty() && peer.next < ALL {
            timeouts += 1;
            case.now = case.sender.deadline().unwrap();
            case.sender.timed_out(case.now);
            next = case.fill();
            assert!(!next.is_empty());
        }
        wire = next;
    }
    assert_eq!((case.sender.flight(), case.sender.deadline()), (0, None));
    [losses, sent, rounds, timeouts]
}

/// Whether something that happens once in `every` times happens.
fn chance(every: u64) -> impl FnMut(u32) -> bool {
    let mut state = 0x1234_5678_9abc_def1u64;
    move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % every == 0
    }
}

#[test]
fn whatever_is_lost_arrives_in_the_end_and_little_is_sent_in_vain() {
    for every in [2, 3, 5, 10, 30, 100, 1000] {
        for tells in [true, false] {
            let [losses, sent, rounds, timeouts] = carry(tells, chance(every));
            println!("1 of {every}, {tells}: {losses} lost, {sent} sent, {rounds} rounds, {timeouts} timeouts");
            if tells {
                // What a timeout takes for lost may have arrived.
                assert!(sent <= 2000 + losses + 20 * timeouts, "{sent} sent for {losses} lost");
                assert!(every < 100 || timeouts <= 1, "{timeouts}");
            }
        }
    }
    assert_eq!(carry(true, |_| false)[..2], [0, 2000]);
}

#[test]
fn a_burst_that_is_lost_is_made_up_for_in_some_round_trips() {
    // As when a queue overflows: every other of many.
    let mut times = std::collections::HashMap::new();
    let [losses, sent, rounds, timeouts] = carry(true, |at| {
        let time = times.entry(at).or_insert(0);
        *time += 1;
        *time == 1 && (400_000..600_000).contains(&at) && at / 1000 % 2 == 1
    });
    assert_eq!((losses, sent, timeouts), (100, 2100, 0));
    assert!(rounds < 40, "{rounds}");
}
