use crate::process::Place;

const SIM: [&str; 6] = ["serve", "--sim", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];

#[test]
fn a_wrong_configuration_is_told_in_full_and_exits_with_2() {
    let place = Place::new();
    place.file("tidegate.toml", "[server]\nlistn = 1\n[queue]\nreserve = 2\n");
    let ended = place.run(&SIM);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("tidegate.toml:2:1: unknown key \"listn\""), "{}", ended.stderr);
    assert!(ended.stderr.contains("tidegate.toml:4:1: reserve must be from 0 to 1, not 2"), "{}", ended.stderr);
}

#[test]
fn a_named_configuration_that_is_not_there_is_an_error() {
    let ended = Place::new().run(&["serve", "--config", "missing.toml"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("cannot read missing.toml"), "{}", ended.stderr);
}

#[test]
fn beyond_loopback_nobody_may_spend_a_shared_credential_without_a_key() {
    let args = ["serve", "--sim", "--listen", "0.0.0.0:0", "--admin-listen", "127.0.0.1:0"];
    let ended = Place::new().run(&args);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("0.0.0.0:0"), "{}", ended.stderr);
    assert!(ended.stderr.contains("--allow-anonymous"), "{}", ended.stderr);
}

#[test]
fn keys_without_a_credential_for_the_upstream_are_refused() {
    let place = Place::new();
    let hash = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
    place.file("tidegate.toml", &format!("[[key]]\nname = \"k\"\nsha256 = \"{hash}\"\n"));
    let ended = place.run(&["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("OPENAI_API_KEY"), "{}", ended.stderr);
}
