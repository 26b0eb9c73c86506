use std::process::{Command, Stdio};

use tidegate_watch::audit::{Kind, Record, Trail, TrailOptions};

use crate::process::{Place, Running, chat, http};

/// A trail of three records in `state`, with its writer.
fn trail(place: &Place) -> Trail {
    std::fs::create_dir_all(place.path().join("state")).unwrap();
    let trail = Trail::start(TrailOptions::new(place.path().join("state/audit.db"))).unwrap();
    let user = |name: &str| Some(name.into());
    trail.append(Record { user: user("ada"), call: user("c-1"), ..Record::new(Kind::Throttle, "refused") });
    trail.append(Record { user: user("bob"), call: user("c-2"), ..Record::new(Kind::Throttle, "waited") });
    trail.append(Record { who: user("anna"), why: user("too slow"), ..Record::new(Kind::Override, "force-open") });
    trail.flush().unwrap();
    trail
}

fn audit<'a>(args: &[&'a str]) -> Vec<&'a str> {
    ["audit"].iter().chain(&args[..1]).chain(&["--state-dir", "state"]).chain(&args[1..]).copied().collect()
}

#[test]
fn records_are_asked_for_by_time_kind_user_and_call_while_they_are_written() {
    let place = Place::new();
    let _writes = trail(&place);
    let lines = |args: &[&str]| {
        let ended = place.run(&audit(args));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.stdout.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect::<Vec<_>>()
    };
    let all = ["throttle refused call=c-1 user=ada", "throttle waited call=c-2 user=bob"];
    let change = "override force-open who=anna why=\"too slow\"";
    assert_eq!(lines(&["query"]), [all[0], all[1], change]);
    assert_eq!(lines(&["query", "--user", "ada", "--since", "1h"]), all[..1]);
    assert_eq!(lines(&["query", "--call", "c-2", "--kind", "throttle"]), all[1..]);
    assert_eq!(lines(&["query", "--kind", "override"]), [change]);
    assert!(lines(&["query", "--since", "2100-01-01"]).is_empty());
}

#[test]
fn tail_goes_on_with_what_comes() {
    let place = Place::new();
    let writes = trail(&place);
    let mut tail = place.start(&audit(&["tail", "-n", "1"]));
    assert!(tail.ready.contains("override force-open"), "{}", tail.ready);
    writes.append(Record::new(Kind::Breaker, "open"));
    let line = tail.line();
    assert!(line.contains("breaker open"), "{line}");
}

#[test]
fn an_export_is_lines_of_json_or_a_table() {
    let place = Place::new();
    trail(&place);
    let json = place.run(&audit(&["export"])).stdout;
    let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!((&first["sequence"], &first["record"]["user"]), (&1.into(), &"ada".into()));
    let table = place.run(&audit(&["export", "--format", "csv", "--kind", "override"])).stdout;
    let rows: Vec<&str> = table.split_terminator("\r\n").collect();
    assert!(rows[0].starts_with("sequence,at,kind,what,call") && rows[1].contains(",force-open,"), "{rows:?}");
    assert_eq!(rows.len(), 2);
}

#[test]
fn verify_prints_the_head_or_what_is_wrong_and_exits_with_1() {
    let place = Place::new();
    trail(&place);
    let ended = place.run(&audit(&["verify"]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.starts_with("ok: 3 records, 1 to 3; head 3:"), "{}", ended.stdout);

    let database = rusqlite::Connection::open(place.path().join("state/audit.db")).unwrap();
    database.execute_batch("DELETE FROM records WHERE sequence = 2").unwrap();
    let ended = place.run(&audit(&["verify"]));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.starts_with("fault: record 2 is missing\n"), "{}", ended.stdout);
}

#[test]
fn verify_exits_with_1_for_as_long_as_the_trail_tells_of_a_break_that_a_start_found() {
    let place = Place::new();
    drop(trail(&place));
    let database = place.path().join("state/audit.db");
    let connection = rusqlite::Connection::open(&database).unwrap();
    connection.execute_batch("DELETE FROM records WHERE sequence > 1").unwrap();
    drop(connection);
    std::fs::remove_file(place.path().join("state/audit.db.head")).unwrap();
    assert_eq!(place.run(&audit(&["verify"])).code, Some(1));
    let serve = ["serve", "--sim", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--state-dir", "state"];
    for _ in 0..2 {
        let mut gateway = place.start(&serve);
        gateway.signal("TERM");
        assert_eq!(gateway.end().code, Some(0));
        let ended = place.run(&audit(&["verify"]));
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let said = &ended.stdout;
        assert!(said.contains(" tells that the head beside the database was missing at the start: nobody"), "{said}");
        assert!(said.contains("\nnote: compare what stands before record ") && !said.contains("ok: "), "{said}");
        assert!(said.lines().last().unwrap().starts_with("not proven: "), "{said}");
        assert_eq!(said.matches("broken: ").count(), 1, "{said}");
    }
}

#[test]
fn verify_says_how_many_records_are_gone_where_only_the_head_is_left() {
    let place = Place::new();
    trail(&place);
    std::fs::remove_file(place.path().join("state/audit.db")).unwrap();
    let ended = place.run(&audit(&["verify"]));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let said = "fault: the database is not there; the head beside it tells of 3 records\n\
                fault: records 1 to 3 are missing\nnot as written: no records; 2 faults\n";
    assert_eq!((&*ended.stdout, &*ended.stderr), (said, ""));
}

#[test]
fn a_trail_that_is_not_there_is_told_with_its_place() {
    let place = Place::new();
    for mode in ["tail", "query", "verify", "export"] {
        let ended = place.run(&audit(&[mode]));
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("there is no audit trail at state/audit.db"), "{}", ended.stderr);
    }
}

#[test]
fn what_a_gateway_refused_is_in_its_trail_while_it_runs_and_after_it_was_killed() {
    let place = Place::new();
    place.file(
        "tidegate.toml",
        "[limit.team]\nrequests_per_minute = 1\n[audit]\nusers = \"hash\"\npath = \"trail.db\"\nretention = \"30d\"\n",
    );
    let serve = ["serve", "--sim", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--state-dir", "state"];
    let gateway = place.start(&serve);
    let api = gateway.announced("api");
    let headers = ["authorization: Bearer tidegate", "x-tidegate-max-wait: 10ms", "x-tidegate-user: ada"];
    assert_eq!((chat(&api, &headers).0, chat(&api, &headers).0), (200, 429));
    let tail = place.start(&audit(&["tail", "--user", "ada", "--kind", "throttle"]));
    assert!(tail.ready.contains("throttle refused") && tail.ready.contains("limit=team/"), "{}", tail.ready);
    assert!(tail.ready.contains(" user=\"~") && !tail.ready.contains("ada"), "{}", tail.ready);

    gateway.signal("KILL");
    drop(gateway);
    let verified = place.run(&audit(&["verify"]));
    assert_eq!(verified.code, Some(0), "{verified:?}");
    let mut gateway = place.start(&serve);
    gateway.signal("TERM");
    assert_eq!(gateway.end().code, Some(0));
    let kept = place.run(&audit(&["query", "--kind", "config"])).stdout;
    assert_eq!(kept.matches("config started").count(), 2, "{kept}");
    let verified = place.run(&audit(&["verify"]));
    assert_eq!(verified.code, Some(0), "a kill is no break: {verified:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn on_a_full_disk_the_gateway_follows_on_failure_raises_the_alert_and_goes_on_once_there_is_room() {
    let place = Place::new();
    place.file(
        "tidegate.toml",
        "[audit]\non_failure = \"refuse\"\n[limit.each]\nper = [\"user\"]\ntokens_per_minute = 1\n\
         [[alert]]\nname = \"audit\"\nwhen = \"audit_failed\"\n\
         webhook = \"http://127.0.0.1:1/hooks/T0P-SECRET\"\n",
    );
    // No file may grow beyond so many KiB; without the trap the signal would end the process instead of failing the write.
    let script = "trap '' XFSZ; ulimit -S -f 400; exec \"$0\" \"$@\"";
    let mut command = Command::new("/bin/bash");
    command.args(["-c", script, env!("CARGO_BIN_EXE_tidegate"), "serve", "--sim", "--state-dir", "state"]);
    command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    command.current_dir(place.path()).env_clear().env("HOME", place.path()).stdin(Stdio::null());
    let mut gateway = Running::start(command);
    let (api, admin) = (gateway.announced("api"), gateway.announced("admin"));
    // Each refusal is a record.
    let reason =
        |reply: &str| reply.lines().find_map(|line| line.strip_prefix("x-tidegate-reason: ")).map(str::to_owned);
    let refused = || reason(&chat(&api, &[]).1).unwrap();
    while refused() != "audit" {}
    let is_told =
        || http("GET", &format!("{admin}/metrics"), &[], "").1.contains("tidegate_alert_firing{alert=\"audit\"} 1");
    while !is_told() {
        assert_eq!(refused(), "audit");
    }
    gateway.logs("alert: audit: the audit trail cannot be written; nothing is lost yet");
    let room = Command::new("prlimit").args(["--pid", &gateway.id(), "--fsize=unlimited"]).status().unwrap();
    assert!(room.success());
    while refused() == "audit" {}
    gateway.signal("TERM");
    let ended = gateway.end();
    assert_eq!(ended.code, Some(0));
    let dead = "an alert could not be delivered: connection refused; trying on";
    assert!(ended.stderr.contains("an alert is not delivered"), "{}", ended.stderr);
    assert!(ended.stderr.contains(dead) && !ended.stderr.contains("T0P-SECRET"), "{}", ended.stderr);
    let alerts = place.run(&audit(&["query", "--kind", "alert"])).stdout;
    assert!(
        alerts.contains(
            "alert fired why=\"audit: the audit trail cannot be written; nothing is lost yet; alert above 0\""
        ),
        "{alerts}"
    );
    assert_eq!(place.run(&audit(&["verify"])).code, Some(0));
}
