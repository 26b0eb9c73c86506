//! `tidegate run` that was killed in the middle of something: the same command goes on with it.

use std::fs;

use crate::process::Place;
use crate::run::{FREE, go, results, simulator, summary};

#[test]
fn bad_lines_that_share_a_name_with_good_ones_lose_none_of_them_when_it_is_killed() {
    let place = Place::new();
    let (_simulator, upstream) = simulator(&place, FREE);
    let good = |id: &str| {
        format!("{{\"custom_id\":\"{id}\",\"body\":{{\"model\":\"m\",\"messages\":[{{\"content\":\"hi\"}}]}}}}\n")
    };
    let bad = "{\"custom_id\":\"x\",\"url\":\"/v1/nothing\",\"body\":{\"model\":\"m\"}}\n";
    place.file("in.jsonl", &format!("{bad}{}{}nonsense\n{}", good("x"), good("line 4"), good("y")));
    let ended = go(&place, &upstream, &["--skip-bad"]);
    assert_eq!((&summary(&ended)["done"], &summary(&ended)["failed"]), (&2.into(), &3.into()), "{ended:?}");
    let names = |text: &str| {
        let names = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        names.map(|line| line["custom_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let out = place.path().join("out.jsonl");
    let whole = fs::read_to_string(&out).unwrap();
    assert_eq!(names(&whole)[..3], ["x", "line 2", "line 4 (2)"]);
    // As a kill leaves it at each of its lines.
    for kept in 0..5 {
        fs::write(&out, whole.split_inclusive('\n').take(kept).collect::<String>()).unwrap();
        let ended = go(&place, &upstream, &["--skip-bad"]);
        assert_eq!((&summary(&ended)["done"], &summary(&ended)["failed"]), (&2.into(), &3.into()), "{ended:?}");
        let found = results(&out);
        assert_eq!((found.len(), found.values().max()), (5, Some(&1)), "{kept} kept: {found:?}");
    }
}
