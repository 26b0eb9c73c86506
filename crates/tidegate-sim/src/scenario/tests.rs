use super::*;

#[test]
fn an_empty_scenario_is_the_default_one() {
    assert_eq!(Scenario::from_toml("").expect("valid"), Scenario::default());
}

#[test]
fn a_whole_scenario_is_read() {
    let scenario = Scenario::from_toml(
        r#"
        require_auth = true
        retry_after = "seconds"
        latency = { first_token = "50ms", tokens_per_second = 200.0 }
        [model."gpt-4o"]
        rpm = 60
        tpm = 10000
        quantum = "1s"
        charge = "input_plus_max"
        initial_fill = 0.5
        [model.default]
        rpm = 3
        [[tenant]]
        model = "gpt-4o"
        share = 0.4
        [[fault]]
        kind = "error_500"
        probability = 0.1
        [[fault]]
        kind = "stall"
        for = "5s"
        from = "1m"
        until = "1m30s"
        "#,
    )
    .expect("valid");
    let (key, entry) = scenario.entry("gpt-4o-2024-08-06").expect("known by its family");
    assert_eq!((key, entry.charge), ("gpt-4o", ChargeRule::InputPlusMax));
    assert_eq!(entry.quantum, Some(Duration::from_secs(1)));
    assert_eq!(scenario.entry("anything").expect("default").1.rpm, Some(3));
    assert_eq!(scenario.tenants("gpt-4o")[0].calls_per_minute, 24.0);
    assert_eq!(scenario.tenants("gpt-4o")[0].charge.tokens, 167);
    assert_eq!(scenario.fault[0].kind, FaultKind::Error500);
    assert_eq!(scenario.fault[1].lasts, Some(Duration::from_secs(5)));
}

#[test]
fn an_unknown_key_is_an_error_with_its_place() {
    let error = Scenario::from_toml("require_auth = true\n[model.\"gpt-4o\"]\nrmp = 3\n").expect_err("unknown key");
    assert_eq!((error.line, error.column), (3, 1));
    assert!(error.message.contains("rmp"), "{error}");
}

#[test]
fn a_bad_duration_is_an_error_with_its_place() {
    let error = Scenario::from_toml("latency = { first_token = \"soon\" }").expect_err("no duration");
    assert_eq!((error.line, error.column), (1, 27));
    assert!(error.message.contains("soon"), "{error}");
}

#[test]
fn what_makes_no_sense_is_an_error() {
    for text in [
        "[model.x]\nrpm = 0",
        "[model.x]\nquantum = \"0s\"",
        "[model.x]\ninitial_fill = 1.5",
        "[[tenant]]\nmodel = \"x\"",
        "[[fault]]\nkind = \"reset\"\nprobability = 2.0",
        "[[fault]]\nkind = \"reset\"\nevery = 0",
        "[[fault]]\nkind = \"unheard_of\"",
        "[output]\nmax = 0",
        "[latency]\ntokens_per_second = 0.0",
    ] {
        assert!(Scenario::from_toml(text).is_err(), "{text}");
    }
}

#[test]
fn named_models_replace_the_built_in_ones_unless_those_are_kept() {
    let alone = Scenario::from_toml("[model.mine]\nrpm = 1").expect("valid");
    assert!(alone.entry("gpt-4o").is_none());
    let both = Scenario::from_toml("keep_default_models = true\n[model.gpt-4o]\nrpm = 1").expect("valid");
    assert_eq!(both.entry("gpt-4o").expect("kept").1.rpm, Some(1));
    assert!(both.entry("gpt-4o-mini").is_some());
}

#[test]
fn dated_snapshots_fold_into_their_family() {
    for (model, of) in [
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4-0613", "gpt-4"),
        ("gpt-4o-mini", "gpt-4o-mini"),
        ("o4-mini-2025-04-16", "o4-mini"),
        ("2024-08-06", "2024-08-06"),
        ("text-embedding-ada-002", "text-embedding-ada-002"),
    ] {
        assert_eq!(family(model), of);
    }
}

#[test]
fn the_example_with_every_key_is_valid() {
    let scenario = Scenario::from_toml(include_str!("../../examples/scenario.toml")).expect("valid");
    assert_eq!(scenario.tenants("gpt-4o").len(), 1);
    assert_eq!(scenario.fault.len(), 5);
}
