use super::*;
use crate::output::Came;

fn made() -> Made {
    Made {
        tidegate_run: 1,
        input: "abc".into(),
        lines: 3,
        upstream: "u".into(),
        endpoint: None,
        model: None,
        prompt_key: None,
        skip_bad: false,
    }
}

fn result(number: u64, status: u16) -> String {
    output::line(number, "its name", &Came::Answer { status, request_id: String::new(), body: "{\"a\":1}".into() })
}

#[test]
fn an_output_that_breaks_off_anywhere_keeps_every_whole_line_and_no_other() {
    for name in ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst"] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join(name);
        drop(Journal::begin(&out, &made(), &look(&out, false).unwrap()).unwrap());
        let packing = Packing::of(&out);
        let members = [1, 2].map(|number| packing.pack(result(number, 200).as_bytes()).unwrap());
        let whole = members.concat();
        for cut in 0..=whole.len() {
            fs::write(&out, &whole[..cut]).unwrap();
            let left = look(&out, false).unwrap();
            let (journal, mut output) = Journal::begin(&out, &made(), &left).unwrap();
            output.write_all(&packing.pack(result(3, 200).as_bytes()).unwrap()).unwrap();
            drop((journal, output));
            let after = look(&out, false).unwrap();
            assert_eq!(after.done.count(), left.done.count() + 1, "{name} cut at {cut}");
            let mut text = String::new();
            io::Read::read_to_string(&mut crate::packing::open(&out).unwrap(), &mut text).unwrap();
            assert!(text.lines().all(|line| output::read(line).is_some()), "{text}");
        }
    }
}

#[test]
fn what_is_not_ours_and_what_is_of_another_run_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.jsonl");
    fs::write(&out, "precious\n").unwrap();
    assert!(look(&out, false).unwrap_err().to_string().contains("was not written by tidegate run"));
    assert_eq!(fs::read_to_string(&out).unwrap(), "precious\n");
    fs::remove_file(&out).unwrap();
    drop(Journal::begin(&out, &made(), &look(&out, false).unwrap()).unwrap());
    let left = look(&out, false).unwrap();
    let refused = |now: Made| Journal::begin(&out, &now, &left).unwrap_err().to_string();
    assert!(refused(Made { input: "other".into(), ..made() }).contains("another input"));
    let said = refused(Made { model: Some("m".into()), ..made() });
    assert!(said.contains("another --model (then none, now m)"), "{said}");
    let _held = Journal::begin(&out, &made(), &left).unwrap();
    assert!(refused(made()).contains("another run is writing"));
}

#[test]
fn failed_results_are_dropped_when_they_are_to_be_sent_again() {
    for name in ["out.jsonl", "out.jsonl.gz"] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join(name);
        let (journal, mut output) = Journal::begin(&out, &made(), &look(&out, false).unwrap()).unwrap();
        let text = [result(1, 200), result(2, 500)].concat();
        output.write_all(&Packing::of(&out).pack(text.as_bytes()).unwrap()).unwrap();
        drop(output);
        assert_eq!(look(&out, false).unwrap().done.failed, 1);
        for number in [1, 2] {
            journal.note(Note::Sends { number, tokens_max: 50 }).unwrap();
            journal.note(Note::Used { number, tokens: 20 }).unwrap();
        }
        drop(journal);
        let left = look(&out, true).unwrap();
        assert!(left.done.has(1) && !left.done.has(2));
        drop(Journal::begin(&out, &made(), &left).unwrap());
        let after = look(&out, false).unwrap();
        assert_eq!((after.done.count(), after.done.failed), (1, 0));
        // It is neither taken for cut off nor forgotten what it used.
        assert_eq!((after.used_tokens(), after.account.sent), (40, HashSet::from([1])));
    }
}

#[test]
fn what_was_sent_without_a_result_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.jsonl");
    let (journal, _) = Journal::begin(&out, &made(), &look(&out, false).unwrap()).unwrap();
    for number in [12, 7] {
        journal.note(Note::Sends { number, tokens_max: 5 }).unwrap();
    }
    drop(journal);
    let path = journal_path(&out);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], b"10 5"].concat()).unwrap();
    drop(Journal::begin(&out, &made(), &look(&out, false).unwrap()).unwrap());
    let left = look(&out, false).unwrap();
    assert_eq!((left.used_tokens(), left.account.sent), (10, HashSet::from([7, 12])));
}

#[test]
fn what_was_refused_is_not_in_flight_until_it_is_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.jsonl");
    let (journal, _output) = Journal::begin(&out, &made(), &look(&out, false).unwrap()).unwrap();
    for number in [1, 2, 3] {
        journal.note(Note::Sends { number, tokens_max: 5 }).unwrap();
    }
    for note in [Note::Over { number: 2 }, Note::Over { number: 3 }, Note::Sends { number: 3, tokens_max: 5 }] {
        journal.note(note).unwrap();
    }
    assert_eq!(look(&out, false).unwrap().account.sent, HashSet::from([1, 3]));
}
