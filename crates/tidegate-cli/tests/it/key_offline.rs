//! Keys while no gateway runs: the same is said of them as through one.

use serde_json::Value;

use crate::gateway::{SIM, stop};
use crate::process::{Ended, Place};

/// A place with a key of the configuration that has expired, one that has not, and one that was made.
fn place() -> Place {
    let place = Place::new();
    let config = ["conf", "old"].map(|name| {
        let expires = if name == "old" { "expires = \"2020-01-01\"\n" } else { "paths = [\"all\"]\n" };
        let hash = format!("{:0>64}", name.len());
        format!("[[key]]\nname = \"{name}\"\nsha256 = \"{hash}\"\norganization = \"acme\"\n{expires}")
    });
    place.file("t.toml", &config.concat());
    let made = place.run(&["key", "new", "made", "--config", "t.toml", "--max-priority", "low"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    place
}

const ASKED: [&[&str]; 6] =
    [&["list"], &["list", "--json"], &["revoke", "conf"], &["revoke", "nobody"], &["new", "conf"], &["new", "made"]];

#[test]
fn what_was_done_is_told_as_through_a_gateway() {
    let changes = |place: &Place| {
        [&["new", "first"][..], &["new", "second"], &["revoke", "first"]].map(|change| {
            let ended = place.run(&[&["key"], change, &["--json"]].concat());
            let mut done: Value =
                serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
            if change[0] == "new" {
                assert!(done["key"].take().as_str().is_some_and(|key| key.starts_with("tg-")), "{ended:?}");
            }
            done
        })
    };
    let [offline, online] = [Place::new(), Place::new()];
    let gateway = online.start(&SIM);
    let told = changes(&offline);
    assert_eq!(told, changes(&online));
    assert_eq!(stop(gateway).code, Some(0));
    assert_eq!(told[0]["warnings"], serde_json::json!(["from now on calls need a key"]));
    assert_eq!(told[2], serde_json::json!({ "what": "revoked", "before": "first", "recorded": true }));
}

/// What comes of each, without the lines of the log.
fn told(place: &Place) -> Vec<Ended> {
    let each = ASKED.iter().map(|asked| {
        let ended = place.run(&[&["key"], *asked, &["--config", "t.toml"]].concat());
        let errors = ended.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        Ended { stderr: errors, ..ended }
    });
    each.collect()
}

#[test]
fn keys_are_told_of_and_refused_as_through_a_gateway() {
    let place = place();
    let offline = told(&place);
    let gateway = place.start(&[&SIM[..], &["--config", "t.toml"]].concat());
    for ((asked, offline), online) in ASKED.iter().zip(&offline).zip(told(&place)) {
        let both = [offline, &online].map(|ended| (ended.code, &*ended.stdout, &*ended.stderr));
        assert_eq!(both[0], both[1], "{asked:?}");
    }
    assert_eq!(stop(gateway).code, Some(0));
    let [shown, json, configured, nobody, ..] = &offline[..] else { panic!("{offline:?}") };
    let expired: Vec<&str> = shown.stdout.lines().filter(|line| line.ends_with("  EXPIRED")).collect();
    assert!(expired.len() == 1 && expired[0].starts_with("old  organization=acme"), "{shown:?}");
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&json["needed"], &json["keys"][2]["max_priority"]), (&true.into(), &"low".into()), "{json}");
    assert_eq!(json["keys"][0]["origin"], "configuration");
    assert!(configured.stderr.contains("is a [[key]] of the configuration"), "{configured:?}");
    assert!(nobody.stderr.contains("no key \"nobody\"; there are: made"), "{nobody:?}");
}
