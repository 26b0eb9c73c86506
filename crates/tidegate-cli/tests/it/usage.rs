use crate::process::Place;

#[test]
fn help_of_each_mode_shows_an_example() {
    let place = Place::new();
    for mode in ["serve", "run", "plan", "demo", "sim", "check", "audit"] {
        let ended = place.run(&[mode, "--help"]);
        assert_eq!(ended.code, Some(0));
        assert!(ended.stdout.contains(&format!("Example: tidegate {mode}")), "{}", ended.stdout);
    }
}

#[test]
fn what_is_not_understood_exits_with_2_and_says_what_was_meant() {
    let place = Place::new();
    for (args, hint) in [
        (&["serve", "--lisen", "127.0.0.1:0"][..], "--listen"),
        (&["serv"], "serve"),
        (&["serve", "--listen", "nowhere"], "127.0.0.1:8080"),
        (&["serve", "--upstream", "api.openai.com"], "https://api.openai.com/v1"),
        (&["serve", "--sim", "--upstream", "http://127.0.0.1:1/v1"], "cannot be used with"),
        (&["sim", "--speed", "0"], "above 0"),
        (&["check"], "<F>"),
        (&["audit", "query", "--since", "soon"], "how long ago, such as 90m"),
        (&["audit", "query", "--kind", "throttles"], "write one of throttle, retry"),
    ] {
        let ended = place.run(args);
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(hint), "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{args:?}");
    }
}
