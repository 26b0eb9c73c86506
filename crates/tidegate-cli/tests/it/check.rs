use crate::process::Place;

#[test]
fn a_good_file_is_told_with_what_it_configures() {
    let place = Place::new();
    let file =
        place.file("good.toml", "[limit.team]\nper = [\"organization\"]\ntokens_per_minute = 60000\n[[upstream]]\n");
    let ended = place.run(&["check", file.to_str().unwrap()]);
    assert_eq!((ended.code, ended.stdout), (Some(0), format!("ok: {} (1 limit, 1 upstream)\n", file.display())));
    let ended = place.run(&["check", "--config", "good.toml"]);
    assert_eq!((ended.code, ended.stdout), (Some(0), "ok: good.toml (1 limit, 1 upstream)\n".to_owned()));
}

#[test]
fn every_fault_of_every_file_is_told_with_its_place_and_the_exit_code_is_2() {
    let place = Place::new();
    place.file("a.toml", "[server]\nlistn = 1\n[limit.x]\n  requests_per_minute = 0\n");
    place.file("b.toml", "");
    let ended = place.run(&["check", "a.toml", "b.toml", "missing.toml"]);
    assert_eq!(ended.code, Some(2));
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(
        lines[..3],
        [
            "a.toml:2:1: unknown key \"listn\" in [server]; did you mean \"listen\"?",
            "a.toml:4:3: requests_per_minute must be above 0; write \"unlimited\" to lift it or \"blocked\" to forbid",
            "ok: b.toml (0 limits, 0 upstreams)",
        ]
    );
    assert!(lines[3].starts_with("cannot read missing.toml"), "{}", lines[3]);
}

#[test]
fn what_is_doubtful_is_told_and_is_no_failure() {
    let place = Place::new();
    place.file("w.toml", "[limit.idle]\n");
    let ended = place.run(&["check", "w.toml"]);
    assert_eq!(ended.code, Some(0));
    assert!(ended.stdout.starts_with("w.toml:1:8: warning: [limit.idle] limits nothing"), "{}", ended.stdout);
}

#[test]
fn a_key_that_has_expired_is_told() {
    let place = Place::new();
    let hash = "2".repeat(64);
    let key = |name: &str, expires: &str| {
        format!("[[key]]\nname = \"{name}\"\nsha256 = \"{hash}\"\nexpires = \"{expires}\"\n")
    };
    place.file("k.toml", &(key("old", "2020-01-01") + &key("new", "2999-01-01").replace("222", "333")));
    let ended = place.run(&["check", "k.toml"]);
    assert_eq!(ended.code, Some(0));
    assert!(ended.stdout.starts_with("k.toml: warning: key \"old\" has expired\nok: "), "{}", ended.stdout);
}

#[test]
fn the_environment_is_left_out() {
    let place = Place::new();
    place.file("a.toml", "");
    let output = place.command(&["check", "a.toml"]).env("TIDEGATE__NONSENSE__KEY", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
}
