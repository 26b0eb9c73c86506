//! The benchmarks start, and say what they measured.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Command;

#[test]
fn a_row_of_the_edge_can_be_run_by_itself() {
    let edge = Command::new(env!("CARGO_BIN_EXE_edge")).args(["1", "limit told by headers"]).output().unwrap();
    let text = String::from_utf8_lossy(&edge.stdout);
    let rows: Vec<_> = text.lines().filter(|line| line.contains(" % ")).collect();
    assert!(edge.status.success() && rows.len() == 1 && rows[0].starts_with("limit told by headers"), "{text}");
}
