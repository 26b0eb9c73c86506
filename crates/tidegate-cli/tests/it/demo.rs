//! `tidegate demo`, from outside.

use crate::process::Place;

#[test]
fn behind_the_gateway_every_call_is_answered_and_alone_many_are_not() {
    let ended = Place::new().run(&["demo"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let row = |name: &str| {
        let line = ended.stdout.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{ended:?}"));
        line.split_whitespace().rev().take(2).map(|number| number.parse().unwrap()).collect::<Vec<u64>>()
    };
    // The gateway's column is the last.
    let (answered, failed, met) = (row("answered"), row("failed"), row("429s met"));
    assert_eq!((answered[0], failed[0], met[0]), (120, 0, 0));
    assert!(failed[1] > 30 && met[1] > 30, "{ended:?}");
    // Who sees that it took longer reads why.
    assert!(ended.stdout.contains("The limit allows 120 calls in 27 s at\nbest"), "{ended:?}");
    assert!(ended.stdout.contains(&format!("{} calls were given up", failed[1])), "{ended:?}");
    // Only how far it is: no line about each call that waited.
    let strange = ended.stderr.lines().find(|line| !line.starts_with("alone: "));
    assert_eq!(strange, None);
}
