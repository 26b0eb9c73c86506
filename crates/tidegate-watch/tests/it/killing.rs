//! A writer that is killed at any instant, or whose disk is full: what is there holds together, what was promised is there.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tidegate_watch::audit::{Kind, Record, Trail, TrailOptions};

use crate::support::{Place, number, refusal};

/// Where the child writes; set only for a child.
const WRITES_TO: &str = "TIDEGATE_TEST_TRAIL";
/// What a child is promised to find.
const DURABLE: &str = "reset";

/// Not a rule: the process that the others kill. It writes records one after the other, each hundredth durably, and says so.
#[test]
fn the_child() {
    let Ok(path) = std::env::var(WRITES_TO) else { return };
    let trail = Trail::start(TrailOptions { waiting_max: 1000, ..TrailOptions::new(path) }).unwrap();
    for n in 0.. {
        if n % 100 != 99 {
            trail.append(refusal(n));
            continue;
        }
        let written = trail.append_durable(Record { kind: Kind::Override, what: DURABLE.into(), ..refusal(n) });
        println!("child {} {n}", if written.is_ok() { "wrote" } else { "could not write" });
    }
}

/// Where the other child writes.
const FLOWS_TO: &str = "TIDEGATE_TEST_FLOW";
/// How long it rests after each.
const FLOW: Duration = Duration::from_micros(50);
/// It does not run further ahead of the disk: half of what one commit takes at most.
const AHEAD_MAX: u64 = 2000;

/// Not a rule: the process that hands over one ordinary record after the other, and says how many it had when it saw a commit done, and
/// at what time in microseconds. First it says how long a record takes that is waited for.
#[test]
fn the_flowing_child() {
    let Ok(path) = std::env::var(FLOWS_TO) else { return };
    let trail = Trail::start(TrailOptions::new(path)).unwrap();
    let mut waits: Vec<u128> = (0..21)
        .map(|n| {
            let started = Instant::now();
            trail.append_durable(refusal(n)).unwrap();
            started.elapsed().as_micros()
        })
        .collect();
    waits.sort_unstable();
    println!("child {} 0", waits[10]);
    let started = Instant::now();
    let mut handed_over = 21;
    let mut seen = trail.status().written;
    loop {
        // Leaves the core to the one that writes.
        thread::sleep(FLOW);
        if handed_over < trail.status().written + AHEAD_MAX {
            trail.append(refusal(handed_over));
            handed_over += 1;
        }
        let written = trail.status().written;
        if written > seen {
            println!("child {} {handed_over}", started.elapsed().as_micros());
            seen = written;
        }
    }
}

struct Writer {
    child: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Writer {
    fn start(command: Command, path: &Path) -> Self {
        Self::start_with(command, WRITES_TO, path)
    }

    fn start_with(mut command: Command, variable: &str, path: &Path) -> Self {
        command.env(variable, path).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        Self { child, said: BufReader::new(stdout).lines() }
    }

    /// The next record that it waited for: its number, and whether it was told that it is on disk.
    fn next(&mut self) -> (bool, u64) {
        let (done, n) = self.said().unwrap();
        (done == "wrote", n)
    }

    /// The next thing that it said. `None`: it has ended.
    fn said(&mut self) -> Option<(String, u64)> {
        loop {
            let line = self.said.next()?.unwrap();
            // On a machine with one core the test's own name comes before it.
            if let Some((_, said)) = line.rsplit_once("child ") {
                let (what, n) = said.rsplit_once(' ').unwrap();
                return Some((what.to_owned(), n.parse().unwrap()));
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn this_test() -> Command {
    child("killing::the_child")
}

fn child(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]);
    command
}

/// What is not on disk came after the last but one commit was done: a commit begins with all that came before it. And commits follow one
/// another at a pace of 5 ms, or as fast as this disk allows. Together: what is lost is younger than that, and than two commits.
#[test]
fn of_ordinary_records_a_kill_loses_what_came_during_the_last_two_commits_which_are_close_together() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..5 {
        let place = Place::new();
        let mut writer = Writer::start_with(child("killing::the_flowing_child"), FLOWS_TO, &place.path());
        let wait: u64 = writer.said().unwrap().0.parse().unwrap();
        let mut commits: Vec<(u64, u64)> = Vec::new();
        let enough = random.usize(20..60);
        while commits.len() < enough {
            commits.extend(writer.said().map(|(at, n)| (at.parse::<u64>().unwrap(), n)));
        }
        for _ in 0..random.u32(0..200_000) {
            std::hint::spin_loop();
        }
        writer.child.kill().unwrap();
        // What it had said is still in the pipe.
        commits.extend(std::iter::from_fn(|| writer.said()).map(|(at, n)| (at.parse::<u64>().unwrap(), n)));

        let (_, had) = commits[commits.len() - 3];
        let there = place.entries().len() as u64;
        assert!(there >= had, "{had} had been handed over when the last but two was done, {there} are there");
        let mut apart: Vec<u64> = commits.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        apart.sort_unstable();
        let (usual, bound) = (apart[apart.len() / 2], 2 * 5000 + 4 * wait);
        println!("{usual} {wait}");
        assert!(usual <= bound, "commits are {usual} µs apart, and a record that is waited for takes {wait} µs");
    }
}

#[test]
fn killed_at_any_instant_it_holds_together_and_has_all_that_was_promised() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let place = Place::new();
    let (mut records, mut uncovered) = (0, 0);
    for _ in 0..10 {
        let mut writer = Writer::start(this_test(), &place.path());
        let mut promised = 0;
        for _ in 0..random.u64(1..30) {
            let (is_done, n) = writer.next();
            assert!(is_done);
            promised = n;
        }
        // Anywhere between this promise and the next.
        for _ in 0..random.u32(0..200_000) {
            std::hint::spin_loop();
        }
        drop(writer);

        let verified = place.verify();
        assert!(verified.is_proven(), "a kill is no break: {verified:?}");
        assert!(verified.uncovered <= 4000, "more than one commit: {}", verified.uncovered);
        let entries = place.entries();
        let of_this_run: Vec<u64> = entries[records..].iter().filter_map(number).collect();
        // What the head did not cover at the start is told first.
        let told = entries.get(records).and_then(|entry| entry.record.numbers.get("records")).copied();
        assert_eq!(told.unwrap_or(0), uncovered);
        (records, uncovered) = (entries.len(), verified.uncovered);
        assert!(of_this_run.iter().copied().eq(0..of_this_run.len() as u64), "no hole, nothing twice");
        assert!(of_this_run.len() as u64 > promised, "{} of more than {promised}", of_this_run.len());
    }
}

/// A child whose disk is full, and what it said until then: enough that records find no room.
#[cfg(target_os = "linux")]
fn full(place: &Place) -> (Writer, Vec<(bool, u64)>) {
    // No file may grow beyond so many KiB; without the trap the signal would end the process instead of failing the write.
    let mut command = Command::new("bash");
    command.args(["-c", "trap '' XFSZ; ulimit -S -f 400; exec \"$0\" \"$@\""]);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", "killing::the_child", "--nocapture"]);
    let mut writer = Writer::start(command, &place.path());
    let mut said = vec![writer.next()];
    while said.last().unwrap().0 {
        said.push(writer.next());
    }
    // Enough that records find no room.
    (0..30).for_each(|_| said.push(writer.next()));
    assert!(said[said.len() - 30..].iter().all(|(is_done, _)| !is_done));
    (writer, said)
}

#[cfg(target_os = "linux")]
#[test]
fn killed_while_its_disk_is_full_it_leaves_how_many_are_lost() {
    let place = Place::new();
    let (writer, said) = full(&place);
    drop(writer);
    let left = place.verify();
    assert!(left.lost == 0 && left.left > 0 && left.left_lost > 0, "{left:?}");
    place.trail().append_durable(Record::new(Kind::Config, "started")).unwrap();
    let verified = place.verify();
    assert_eq!((verified.lost, verified.left, verified.faults), (left.left_lost, 0, Vec::new()));
    let kept = place.entries().iter().filter(|entry| entry.record.kind == Kind::Throttle).count() as u64;
    // All but each hundredth are of that kind.
    let handed_over = (said.last().unwrap().1 + 1) / 100 * 99;
    assert!(kept + verified.lost >= handed_over, "{kept} and {} of {handed_over}", verified.lost);
    assert!(place.entries().iter().filter(|entry| entry.record.what == "lost").count() == 1);
}

#[cfg(target_os = "linux")]
#[test]
fn on_a_full_disk_it_goes_on_trying_and_tells_how_many_are_lost() {
    let place = Place::new();
    let (mut writer, mut said) = full(&place);
    assert_eq!(place.verify().faults, [], "also while it is full");

    let pid = writer.child.id().to_string();
    assert!(Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited"]).status().unwrap().success());
    while !said.last().unwrap().0 {
        said.push(writer.next());
    }
    said.push(writer.next());
    drop(writer);

    let verified = place.verify();
    assert!(verified.is_proven(), "{verified:?}");
    assert!(verified.lost > 0);
    let entries = place.entries();
    let gap = entries.iter().find(|entry| entry.record.kind == Kind::Gap).unwrap();
    assert!(gap.record.why.as_ref().unwrap().contains("found no room: "), "{gap:?}");
    let kept: Vec<u64> = entries.iter().filter(|entry| entry.record.what == DURABLE).filter_map(number).collect();
    let promised: Vec<u64> = said.iter().filter(|(is_done, _)| *is_done).map(|(_, n)| *n).collect();
    assert!(promised.iter().all(|n| kept.contains(n)));
    let refused = said.iter().filter(|(is_done, _)| !is_done).map(|(_, n)| *n);
    assert!(refused.into_iter().all(|n| !kept.contains(&n)), "who was told no must not find it later");
}
