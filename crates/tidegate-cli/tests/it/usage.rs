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

#[test]
fn what_an_operator_mistypes_exits_with_2_before_anything_is_asked() {
    let place = Place::new();
    let boost = |more: &[&'static str]| {
        let mut args = vec!["admin", "limits", "boost", "team"];
        args.extend(more);
        args
    };
    let long = format!("--match=user={}", "a".repeat(257)).leak();
    for (args, hints) in [
        (vec!["admin", "--admin", "gibberish", "status"], ["'gibberish'", "http://127.0.0.1:8081"]),
        (
            vec!["admin", "status", "--admin", "ftp://127.0.0.1:8081"],
            ["must begin with https:// or http://", "HOST:PORT"],
        ),
        (vec!["admin", "status", "--admin", "127.0.0.1:80810"], ["'127.0.0.1:80810'", "127.0.0.1:8081"]),
        (vec!["admin", "status", "--admin", "http://"], ["'http://'", "http://127.0.0.1:8081"]),
        (vec!["admin", "status", "--admin", ""], ["--admin", "http://127.0.0.1:8081"]),
        (vec!["key", "list", "--admin", "127.0.0.1"], ["'127.0.0.1'", "HOST:PORT"]),
        (boost(&["--factor", "0", "--for", "10m"]), ["'0'", "from 1 to 1000, such as 1.5"]),
        (boost(&["--factor", "nan", "--for", "10m"]), ["'nan'", "from 1 to 1000"]),
        (boost(&["--factor", "1001", "--for", "10m"]), ["'1001'", "from 1 to 1000"]),
        (boost(&["--factor", "twice", "--for", "10m"]), ["'twice'", "a number, such as 1.5"]),
        (boost(&["--factor", "2", "--for", "soon"]), ["'soon'", "from 1s to 30d, such as 10m"]),
        (boost(&["--factor", "2", "--for", "31d"]), ["'31d'", "from 1s to 30d, such as 10m"]),
        (boost(&["--factor", "1", "--for", "10"]), ["'10'", "from 1s to 30d, such as 10m"]),
        (boost(&["--factor", "2"]), ["--for is missing", "such as --for 10m"]),
        (boost(&["--for", "10m"]), ["--factor <X>", "Usage: "]),
        (boost(&["--factor", "2", "--for", "10m", "--match", "ada"]), ["'ada'", "write it as user=ada"]),
        (
            boost(&["--factor", "2", "--for", "10m", "--match", "usr=ada"]),
            ["\"usr\" is none of account, key", "user=ada"],
        ),
        (boost(&["--factor", "2", "--for", "10m", "--match", "user="]), ["'user='", "1 to 256 characters"]),
        (boost(&["--factor", "2", "--for", "10m", long]), ["1 to 256 characters", "user=ada"]),
        (
            boost(&["--factor", "2", "--for", "10m", "--match", "user=a", "--match", "user=b"]),
            ["names user twice", "user=a*"],
        ),
    ] {
        let ended = place.run(&args);
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        for hint in hints {
            assert!(ended.stderr.contains(hint), "{args:?}: {}", ended.stderr);
        }
        assert_eq!(ended.stdout, "", "{args:?}");
    }
    // These are well said: only that no gateway runs here is in their way.
    for more in [&["--factor", "1"][..], &["--factor", "1.5", "--for", "1h 30m", "--match", "request_type=chat"]] {
        let ended = place.run(&boost(more));
        assert_eq!(ended.code, Some(1), "{more:?}: {ended:?}");
        assert!(ended.stderr.contains("no gateway is running"), "{more:?}: {}", ended.stderr);
    }
    let bare = place.run(&["admin", "status", "--admin", "127.0.0.1:1", "--token", "x"]);
    assert!(bare.code == Some(1) && bare.stderr.contains("http://127.0.0.1:1 does not answer"), "{bare:?}");
}

#[test]
fn what_is_mistyped_of_a_key_exits_with_2_before_anything_is_made_or_asked() {
    let place = Place::new();
    let line = "must be one line of at most 500 characters, such as";
    let long: &str = "a".repeat(501).leak();
    let text = "must be one line of 1 to 256 characters, such as acme; leave it out";
    let mistyped = [
        (
            &["new", "bad name"][..],
            ["'bad name'", "1 to 64 letters, digits, dots, underscores and dashes, such as billing"],
        ),
        (&["new", ""], ["''", "1 to 64 letters"]),
        (&["new", "a", "--max-priority", "bogus"], ["'bogus'", "low, normal, high"]),
        (&["new", "a", "--default-priority", ""], ["--default-priority", "low, normal, high"]),
        (
            &["new", "a", "--max-priority", "low", "--default-priority", "high"],
            ["--default-priority high is above --max-priority low", "such as --default-priority low"],
        ),
        (&["new", "a", "--expires", "tomorrow"], ["'tomorrow'", "a date such as 2027-01-01 or"]),
        (&["new", "a", "--expires", "2001-01-01"], ["'2001-01-01'", "is over already"]),
        (&["new", "a", "--paths", "bogus"], ["'bogus'", "inference, all"]),
        (&["new", "a", "--may-name-users", "maybe"], ["'maybe'", "true, false"]),
        (&["new", "a", "--organization", ""], ["--organization", text]),
        (&["new", "a", "--project", " "], ["--project", text]),
        (&["new", "a", "--user", "a\nb"], ["--user", text]),
        (&["new", "a", "--reason", "a\nb"], ["--reason", line]),
        (&["revoke", "a", "--reason", long], ["--reason", line]),
        (&["revoke", ""], ["a value is required", "<NAME>"]),
    ];
    let refused = |args: &[&str], hints: [&str; 2]| {
        let ended = place.run(args);
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        for hint in hints {
            assert!(ended.stderr.contains(hint), "{args:?}: {}", ended.stderr);
        }
        assert!(ended.stdout.is_empty() && !ended.stderr.contains('{'), "{args:?}: {ended:?}");
    };
    for (args, hints) in mistyped {
        refused(&[&["key"], args].concat(), hints);
    }
    for reason in ["a\nb", long] {
        refused(&["admin", "pause", "--reason", reason], ["--reason", line]);
    }
    refused(&["admin", "limits", "reset", ""], ["a value is required", "[NAME]"]);
    assert!(!place.path().join(".local").exists(), "nothing was made");
    let well =
        ["key", "new", "a", "--max-priority", "low", "--default-priority", "low", "--paths", "all", "--reason", ""];
    let made = place.run(&[&well[..], &["--expires", "2999-01-01T00:00:00Z", "--organization", " acme "]].concat());
    assert_eq!(made.code, Some(0), "{made:?}");
    let listed = place.run(&["key", "list"]).stdout;
    assert!(
        listed.starts_with("a  organization=acme  paths=all  expires=2999-01-01T00:00:00Z  created-by=local"),
        "{listed}"
    );
}
