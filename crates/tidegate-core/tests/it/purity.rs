//! The core stays pure: this reads its sources and its manifest.

use std::fs;
use std::path::Path;

/// What none of the core's sources may mention.
const FORBIDDEN: [&str; 21] = [
    "std::time::Instant",
    "SystemTime::now",
    "Instant::now",
    "std::thread",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "std::fs",
    "io::Read",
    "io::Write",
    "stdin",
    "println!",
    "std::env",
    "std::process",
    "tokio",
    "async fn",
    ".await",
    "Mutex",
    "Rng::new",
    "fastrand::u",
    "thread_rng",
];

/// What the core may depend on, each with no clock, no I/O and no randomness of its own in the features used.
const ALLOWED: [&str; 10] = [
    "fastrand",
    "hashbrown",
    "httpdate",
    "humantime",
    "memchr",
    "serde",
    "serde_json",
    "smallvec",
    "strsim",
    "thiserror",
];

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn no_source_of_the_core_reads_a_clock_sleeps_locks_draws_randomness_or_does_io() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 20);
    for (path, text) in found {
        // Tests within a file come last and may read golden files.
        let code = text.split("#[cfg(test)]").next().unwrap_or("");
        for (number, line) in code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for word in FORBIDDEN {
                assert!(!line.contains(word), "{path}:{}: {word} in {line}", number + 1);
            }
        }
    }
}

#[test]
fn the_core_depends_on_nothing_that_could_make_it_impure() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("[dev-dependencies]").next().unwrap();
    for line in dependencies.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('[')) {
        let name = line.split(['.', ' ', '=']).next().unwrap();
        assert!(ALLOWED.contains(&name) || name == "toml", "{name}");
    }
}
