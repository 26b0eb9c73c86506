use std::time::Duration;

use proptest::prelude::*;

use super::{Loaded, load};
use crate::config::{
    AuditConfig, BreakerConfig, Config, Jitter, KeyPaths, ListenAddr, ModelMap, QueueConfig, RetryConfig, SecretSource,
    ServerConfig, StoreConfig, TelemetryConfig, UpstreamConfig, UpstreamKind,
};
use crate::limit::{Algorithm, Allowance, Dimension, Mode, Scope};

fn try_load(text: &str) -> Result<Loaded, Vec<String>> {
    layered(&[("t.toml", text)], &[])
}

fn layered(files: &[(&str, &str)], env: &[(&str, &str)]) -> Result<Loaded, Vec<String>> {
    let files: Vec<_> = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    load(&files, env).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

fn config(text: &str) -> Config {
    match try_load(text) {
        Ok(loaded) => loaded.config,
        Err(errors) => panic!("{errors:#?}"),
    }
}

fn errors(text: &str) -> Vec<String> {
    try_load(text).expect_err("should have been refused")
}

/// The only error of `text`.
fn error(text: &str) -> String {
    let errors = errors(text);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors[0].clone()
}

#[test]
fn the_example_is_read_without_a_warning_and_its_defaults_are_the_defaults() {
    let loaded = try_load(crate::config::EXAMPLE).unwrap_or_else(|errors| panic!("{errors:#?}"));
    assert_eq!(loaded.warnings, []);
    let Config { server, mut policy, audit, store, telemetry, upstreams, keys, .. } = loaded.config;
    assert_eq!(server, ServerConfig::default());
    assert_eq!(policy.queue.weights.remove("acme"), Some(3));
    assert_eq!(policy.queue, QueueConfig::default());
    assert_eq!(policy.retry, RetryConfig::default());
    assert_eq!(policy.breaker, BreakerConfig::default());
    assert_eq!((audit, store), (AuditConfig::default(), StoreConfig::default()));
    assert_eq!(telemetry, TelemetryConfig::default());
    let api_key = Some(SecretSource::Env("OPENAI_API_KEY".to_owned()));
    assert_eq!(upstreams[0], UpstreamConfig { api_key, ..UpstreamConfig::default() });
    assert_eq!((upstreams[1].kind, upstreams[1].fallback), (UpstreamKind::Azure, true));
    assert_eq!((keys[0].sha256[0], keys[0].paths, keys[0].expires), (0x2c, KeyPaths::Inference, Some(4_070_908_800)));
    assert_eq!(policy.upstreams.len(), 2);

    let [account, team, each_user] = policy.limits.as_slice() else { panic!("the file's order, three limits") };
    assert_eq!((&*account.name, &*team.name, &*each_user.name), ("account", "team", "each_user"));
    assert_eq!(account.per, [Scope::Account, Scope::Model]);
    assert_eq!((account.algorithm, account.mode), (Some(Algorithm::TokenBucket), Mode::Enforce));
    assert_eq!(account.overrides[0].pattern, "gpt-4o*");
    let acme = &team.overrides[0].rates;
    assert_eq!(acme.allowance(Dimension::TokensPerMinute), Some(Allowance::Unlimited));
}

#[test]
fn nothing_written_is_nothing_configured() {
    assert_eq!(config(""), Config::default());
    assert_eq!(layered(&[], &[("PATH", "/bin"), ("TIDEGATE_ADMIN_TOKEN", "x")]).unwrap().config, Config::default());
}

#[test]
fn every_error_is_reported_at_once_with_its_place() {
    let found = errors(
        "[server]\n  listn = 1\n[retry]\nmax_attempts = 0\n[limit.a]\nper = [\"usr\"]\n  requests_per_minute = 0\n[nope]\n",
    );
    assert_eq!(
        found,
        [
            "t.toml:2:3: unknown key \"listn\" in [server]; did you mean \"listen\"?",
            "t.toml:4:1: max_attempts must be at least 1, not 0; the first send counts: write 1 for no retries",
            "t.toml:6:8: per cannot have a level for each \"usr\"; did you mean \"user\"?",
            "t.toml:7:3: requests_per_minute must be above 0; write \"unlimited\" to lift it or \"blocked\" to forbid",
            "t.toml:8:2: unknown table \"nope\"; known here: server, upstream, key, limit, model_groups, queue, retry, \
             breaker, audit, admin, store, alert, telemetry",
        ]
    );
}

#[test]
fn text_that_is_no_toml_says_where() {
    let found = errors("[server]\nlisten = = 1\n[queue\n");
    assert!(found[0].starts_with("t.toml:2:10: not TOML: "), "{found:#?}");
    assert!(found.iter().any(|error| error.starts_with("t.toml:3:")), "{found:#?}");
    assert!(errors("a = 1\na = 2")[0].contains("duplicate key"), "{:?}", errors("a = 1\na = 2"));
}

#[test]
fn wrong_types_say_what_was_written_and_what_to_write() {
    let cases = [
        (
            "[retry]\nbase_delay = 1000",
            "base_delay must be a duration with its unit, not 1000; write \"1000ms\" or \"1000s\"",
        ),
        ("[retry]\nbase_delay = \"fast\"", "base_delay must be a duration, not \"fast\"; write one such as"),
        ("[retry]\nbackoff_multiplier = 0.5", "backoff_multiplier must be from 1 to 100, not 0.5"),
        ("[retry]\njitter = \"ful\"", "not \"ful\"; did you mean \"full\"?"),
        ("[retry]\nretryable_status_codes = [200]", "retryable_status_codes must be at least 400, not 200"),
        ("[retry]\nbase_delay = \"2m\"", "base_delay 2m is above max_delay 30s; raise max_delay"),
        ("[server]\nmax_body = \"32 apples\"", "max_body must be a size, not \"32 apples\""),
        (
            "[server]\nlisten = \"example.org\"",
            "listen must be an address to listen on, not \"example.org\"; write IP:PORT",
        ),
        ("[server]\ntls_cert = \"a.pem\"", "tls_cert needs tls_key beside it"),
        ("server = 3", "server must be a table, not 3; write [server]"),
        ("[queue]\nreserve = 1.5", "reserve must be from 0 to 1, not 1.5"),
        ("[queue]\nreserve = nan", "reserve must be from 0 to 1, not NaN"),
        ("[queue]\npriorities = { urgent = 3 }", "unknown key \"urgent\" in [queue.priorities]"),
        ("[queue.weights]\nacme = 0", "acme must be at least 1, not 0"),
        ("[breaker]\nfailure_rate = 0", "failure_rate must be above 0"),
        ("[audit]\nusers = \"none\"", "users must be \"plain\" or \"hash\", not \"none\""),
        ("[store]\nurl = \"http://x\"", "url must be the URL of a Redis or Valkey server"),
        ("[circuit_breaker]\n", "unknown table \"circuit_breaker\"; did you mean \"breaker\"?"),
        ("[[alert]]\nname = \"a\"\nwhen = \"retries\"\nabove = 3", "above must be from 0 to 1, not 3"),
        ("[[alert]]\nname = \"a\"\nwhen = \"overhead\"\nabove = 50", "above must be from 0 to 5, not 50"),
    ];
    for (text, expected) in cases {
        let found = error(text);
        assert!(found.contains(expected), "{text}\n  {found}\n  should say: {expected}");
    }
}

#[test]
fn limits_are_checked_against_themselves() {
    let cases = [
        ("requests_per_minute = -5", "requests_per_minute must be above 0, not -5; write \"unlimited\""),
        ("tokens_per_minute = 99999999999999999999999999", "tokens_per_minute must be at most 1000000000000"),
        (
            "tokens_per_minute = \"3500\"",
            "tokens_per_minute must be a whole number, \"unlimited\" or \"blocked\", not \"3500\"",
        ),
        ("tokens_per_minute = 1.5", "not 1.5; write a number without quotes"),
        ("tokens_per_minute = 10\nburst_allowance = 10", "burst_allowance needs requests_per_minute"),
        ("requests_per_minute = 10\nburst_allowance = \"blocked\"", "burst_allowance must be a number of requests"),
        (
            "per = [\"organization\"]\ntokens_per_minute = 1\n[limit.a.users.bob]\ntokens_per_minute = 2",
            "[limit.a.users] needs a level for each user, which per does not name; write per = [\"organization\", \"user\"]",
        ),
        (
            "token_per_minute = 1\nrequests_per_day = 1",
            "unknown key \"token_per_minute\" in [limit.a]; did you mean \"tokens_per_minute\"?",
        ),
        (
            "per = \"user\"\nrequests_per_day = 1\n[limit.a.users.x]",
            "per must be an array, not \"user\"; write per = [\"user\"]",
        ),
        ("tpm = 1\nrequests_per_day = 1", "did you mean \"tokens_per_minute\"?"),
    ];
    for (body, expected) in cases {
        let found = error(&format!("[limit.a]\n{body}"));
        assert!(found.contains(expected), "{body}\n  {found}\n  should say: {expected}");
    }
    assert!(error("[limit.learned]\nrequests_per_minute = 1").contains("is taken by the limits that are learned"));
    assert!(error("[limit.\"a/b\"]\nrequests_per_minute = 1").contains("cannot be named \"a/b\""));
    let idle = try_load("[limit.a]\n").unwrap().warnings;
    assert!(idle[0].message.contains("limits nothing"), "{idle:?}");
}

#[test]
fn a_model_belongs_to_one_group_only() {
    let found = error("[model_groups]\na = [\"x\"]\nb = [\"x\"]");
    assert!(found.contains("b names \"x\", which is in \"a\" already"), "{found}");
}

const HASH: &str = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";

#[test]
fn a_tidegate_key_is_never_forwarded_so_every_upstream_needs_its_own() {
    let key = format!("[[key]]\nname = \"k\"\nsha256 = \"{HASH}\"\n");
    let found = error(&format!("{key}[[upstream]]\nname = \"o\"\n"));
    assert!(found.starts_with("t.toml:4:1: [[upstream]] \"o\" needs an api_key"), "{found}");
    assert!(try_load(&format!("{key}[[upstream]]\napi_key = \"env:K\"\n")).is_ok());
    assert!(try_load(&key).is_ok(), "the built-in upstream brings its own");
}

#[test]
fn keys_are_checked_and_secrets_are_never_shown() {
    let cases = [
        ("name = \"k\"\nsha256 = \"tg-very-secret\"".to_owned(), "sha256 must be 64 hexadecimal digits"),
        (format!("sha256 = \"{HASH}\""), "[[key]] has no name"),
        ("name = \"k\"".to_owned(), "[[key]] \"k\" has no sha256"),
        (format!("name = \"k\"\nsha256 = \"{HASH}\"\nexpires = \"soon\""), "expires must be a date, not \"soon\""),
        (
            format!("name = \"k\"\nsha256 = \"{HASH}\"\nmax_priority = \"low\"\ndefault_priority = \"high\""),
            "default_priority high is above max_priority low",
        ),
    ];
    for (body, expected) in cases {
        let found = error(&format!("[[key]]\n{body}"));
        assert!(found.contains(expected) && !found.contains("secret\""), "{found}\n  should say: {expected}");
    }
    let low = format!("[[key]]\nname = \"k\"\nsha256 = \"{HASH}\"\nmax_priority = \"low\"\nexpires = 2027-01-01");
    let low = config(&low).keys.remove(0);
    assert_eq!((low.default_priority, low.expires), (crate::call::Priority::Low, Some(1_798_761_600)));

    let found = error("[[upstream]]\napi_key = \"sk-live-123\"");
    assert!(found.contains("where the secret is kept") && !found.contains("sk-live"), "{found}");
    let found = error("[[upstream]]\nbase_url = \"https://user:pass@host/v1\"");
    assert!(found.contains("must not hold credentials") && !found.contains("pass"), "{found}");
}

#[test]
fn names_are_given_once() {
    let found = error(&format!(
        "[[key]]\nname = \"k\"\nsha256 = \"{HASH}\"\n[[key]]\nname = \"k\"\nsha256 = \"{}\"",
        HASH.replace('2', "3")
    ));
    assert_eq!(found, "t.toml:4:1: the same key as at t.toml:1; give each its own, or leave one out");
    assert!(error("[[upstream]]\n[[upstream]]\napi_key = \"env:B\"").contains("the same upstream as at t.toml:1"));
}

#[test]
fn a_base_url_ends_in_v1() {
    let found = error("[[upstream]]\nbase_url = \"https://api.openai.com\"");
    assert!(found.contains("does not end in /v1; write \"https://api.openai.com/v1\", or kind"), "{found}");
    let other = try_load("[[upstream]]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:11434/api/\"").unwrap();
    assert_eq!(other.config.upstreams[0].base_url, "http://127.0.0.1:11434/api");
    assert!(other.warnings[0].message.contains("does not end in /v1"), "{:?}", other.warnings);
    assert!(error("[[upstream]]\nbase_url = \"api.openai.com/v1\"").contains("must begin with https://"));
    assert!(error("[[upstream]]\nkind = \"azure\"").contains("has no base_url"));
}

#[test]
fn models_are_globs_or_a_table_that_renames() {
    let config = config("[[upstream]]\nmodels = { \"gpt-4o\" = \"prod\" }");
    let ModelMap::Renames(names) = &config.upstreams[0].models else { panic!("a table renames") };
    assert_eq!(names["gpt-4o"], "prod");
    assert!(error("[[upstream]]\nmodels = []").contains("must name a model"));
}

#[test]
fn the_seeds_spelling_is_read_with_bare_milliseconds() {
    let config = config(
        "[rateLimit]\nrequestsPerMinute = 60\ntokensPerMinute = 40000\nburstAllowance = 10\n\
         [rateLimit.modelLimits.\"gpt-4o\"]\ntokensPerMinute = 500\n\
         [rateLimit.organizationLimits.bigCo]\nrequestsPerDay = 7\n\
         [retry]\nmaxAttempts = 2\nbaseDelay = 500\nmaxDelay = 5000\njitter = true\n\
         [retry.customRetryStrategies.someError]\nbaseDelay = 20\n\
         [circuitBreaker]\nfailureThreshold = 3\nrecoveryTimeout = 30000\nhalfOpenMaxCalls = 2",
    );
    let retry = &config.policy.retry;
    assert_eq!((retry.max_attempts, retry.base_delay, retry.jitter), (2, Duration::from_millis(500), Jitter::Additive));
    assert_eq!(retry.strategies["someError"].base_delay, Some(Duration::from_millis(20)));
    assert!(retry.strategies.contains_key("model_overloaded"), "what is there by default stays");
    let breaker = &config.policy.breaker;
    assert_eq!((breaker.failure_threshold, breaker.recovery_timeout), (3, Duration::from_secs(30)));
    let limit = &config.policy.limits[0];
    assert_eq!(&*limit.name, "rate_limit");
    assert_eq!(limit.per, [Scope::Organization, Scope::User, Scope::Model]);
    let patterns: Vec<_> = limit.overrides.iter().map(|other| (other.scope, other.pattern.as_str())).collect();
    assert_eq!(patterns, [(Scope::Organization, "bigCo"), (Scope::Model, "gpt-4o")]);
    assert!(!limit.is_mirror());
}

#[test]
fn both_spellings_of_one_setting_are_an_error() {
    let found = error("[retry]\nmax_attempts = 2\nmaxAttempts = 3");
    assert_eq!(found, "t.toml:3:1: max_attempts is also written at t.toml:2, in another spelling; keep one of them");
}

#[test]
fn later_files_win_key_by_key_and_the_environment_wins_over_files() {
    let first = "[server]\nlisten = \"127.0.0.1:1\"\nmax_body = 7\n[[upstream]]\nname = \"a\"\nweight = 2\nbase_url = \
                 \"http://x/v1\"\n[limit.my-team]\nrequests_per_minute = 5";
    let second = "[server]\nlisten = \"127.0.0.1:2\"\n[[upstream]]\nname = \"a\"\nweight = 3\n[[upstream]]\nname = \
                  \"b\"\nkind = \"compatible\"\nbase_url = \"http://y/v1\"";
    let env = [
        ("TIDEGATE__LIMIT__MY_TEAM__REQUESTS_PER_MINUTE", "6"),
        ("TIDEGATE__UPSTREAM__B__WEIGHT", "9"),
        ("TIDEGATE__QUEUE__MAX_WAIT", "3s"),
        ("TIDEGATE__SERVER__ALLOWED_HOSTS", "a.example, b.example"),
        ("TIDEGATE__RETRY__JITTER", "none"),
    ];
    let config = layered(&[("1.toml", first), ("2.toml", second)], &env).unwrap_or_else(|e| panic!("{e:#?}")).config;
    assert_eq!(config.server.listen, [ListenAddr::Socket("127.0.0.1:2".parse().unwrap())]);
    assert_eq!(config.server.max_body, 7);
    assert_eq!(config.server.allowed_hosts, ["a.example", "b.example"]);
    let upstreams: Vec<_> = config.upstreams.iter().map(|u| (&*u.name, u.weight, u.base_url.as_str())).collect();
    assert_eq!(upstreams, [("a", 3, "http://x/v1"), ("b", 9, "http://y/v1")]);
    assert_eq!(config.policy.limits[0].base.allowances[0], Some(Allowance::Units(6.try_into().unwrap())));
    assert_eq!(&*config.policy.limits[0].name, "my-team");
    assert_eq!((config.policy.queue.max_wait, config.policy.retry.jitter), (Duration::from_secs(3), Jitter::None));
}

#[test]
fn a_wrong_variable_is_called_by_its_name() {
    let env = [("TIDEGATE__SERVER__LISTN", "x"), ("TIDEGATE__QUEUE__RESERVE", "lots"), ("TIDEGATE__", "x")];
    let found = layered(&[], &env).unwrap_err();
    assert!(found[0].starts_with("TIDEGATE__: TIDEGATE__ names no setting; write"), "{found:#?}");
    assert_eq!(found[1], "TIDEGATE__QUEUE__RESERVE: reserve must be a number, not \"lots\"");
    assert!(found[2].starts_with("TIDEGATE__SERVER__LISTN: unknown key \"listn\" in [server]; did you"), "{found:#?}");
}

#[test]
fn a_name_that_looks_like_a_number_is_still_a_name_in_the_environment() {
    let config =
        layered(&[], &[("TIDEGATE__UPSTREAM__OPENAI__API_KEY", "env:K"), ("TIDEGATE__UPSTREAM__OPENAI__NAME", "7")]);
    assert_eq!(&*config.unwrap().config.upstreams[0].name, "7");
}

/// Text that looks like a configuration, more or less.
fn near_toml() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just("[server]".to_owned()),
        Just("[[upstream]]".to_owned()),
        Just("[[key]]".to_owned()),
        Just("[limit.x.users.\"*\"]".to_owned()),
        Just("[rateLimit.modelLimits]".to_owned()),
        "(listen|per|name|models|sha256|expires|maxDelay|jitter|tokens_per_minute|base_url) = .{0,20}",
        "[a-zA-Z_.]{1,12} = (\"[^\"]{0,20}\"|-?[0-9]{1,30}|true|\\[[^\\]]{0,9}\\]|[0-9]{4}-[0-9]{2}-[0-9]{2})",
        ".{0,30}",
    ];
    proptest::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in near_toml(), key in "[A-Z_é]{0,20}", value in ".{0,30}") {
        let _ = layered(&[("t.toml", &text)], &[(&format!("TIDEGATE__{key}"), &value)]);
    }

    #[test]
    fn errors_point_into_the_file(text in near_toml()) {
        let lines = text.split('\n').count();
        if let Err(errors) = load(&[("t.toml".to_owned(), text)], std::iter::empty()) {
            prop_assert!(!errors.is_empty());
            for error in errors {
                prop_assert!((1..=lines).contains(&error.line) && error.column >= 1, "{error}");
            }
        }
    }
}
