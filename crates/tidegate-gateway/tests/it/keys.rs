//! Keys that are made and taken away while the gateway runs.

use serde_json::Value;
use tidegate_core::config::KeyConfig;

use crate::admin::ask;
use crate::auditing::records;
use crate::operating::{done, start_in};
use crate::support::*;

/// How a call with this credential is answered, by an upstream that answers every call well.
async fn call_with(gateway: &tidegate_gateway::Gateway, upstream: &Script, secret: &str) -> u16 {
    let mut client = client(gateway).await;
    client.post("/v1/chat/completions", &format!("authorization: Bearer {secret}\r\n"), CHAT).await;
    tokio::select! {
        answer = client.message(false) => answer.status(),
        (mut peer, request) = upstream.request() => {
            assert!(!request.headers.iter().any(|(_, value)| value.contains(secret)), "a key goes no further");
            peer.reply("200 OK", "connection: close\r\n", "{}").await;
            client.message(false).await.status()
        }
    }
}

#[tokio::test]
async fn a_key_is_shown_once_and_lets_calls_in_until_it_is_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Script::listen().await;
    let gateway = start_in(dir.path(), config(upstream.addr)).await;
    assert_eq!(call_with(&gateway, &upstream, "anything").await, 200);
    let body = r#"{"name":"billing","organization":"acme","expires":"2999-01-01","reason":"they asked"}"#;
    let reply = ask(&gateway, "operator", "POST /admin/v1/keys", body).await;
    assert_eq!(reply.status(), 201, "{}", reply.text());
    let made: Value = serde_json::from_slice(&reply.body).unwrap();
    let secret = made["key"].as_str().unwrap();
    assert!(secret.starts_with("tg-") && secret.len() == 67, "{secret}");
    assert_eq!(made["warnings"][0], "from now on calls need a key");
    assert_eq!(call_with(&gateway, &upstream, "anything").await, 401);
    assert_eq!(call_with(&gateway, &upstream, secret).await, 200);
    let listed = done(&gateway, "GET /admin/v1/keys", "").await;
    let key = &listed["keys"][0];
    assert_eq!(
        (&key["name"], &key["organization"], &key["origin"], &key["created_by"], &key["expires"]),
        (&"billing".into(), &"acme".into(), &"state directory".into(), &"local".into(), &"2999-01-01T00:00:00Z".into())
    );
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let text = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!text.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
    done(&gateway, "DELETE /admin/v1/keys/billing", r#"{"reason":"it leaked"}"#).await;
    assert_eq!(call_with(&gateway, &upstream, secret).await, 401);
    // Without any key left calls still need one: to revoke the last must let nobody in.
    assert_eq!(call_with(&gateway, &upstream, "anything").await, 401);
    let told = done(&gateway, "GET /admin/v1/audit?kind=key", "").await;
    let told: Vec<_> = told["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["record"]["what"].as_str().unwrap(), entry["record"]["why"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [("created", "they asked"), ("revoked", "it leaked")]);
}

#[tokio::test]
async fn keys_that_were_made_are_there_after_a_crash_and_for_their_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Script::listen().await;
    let gateway = start_in(dir.path(), config(upstream.addr)).await;
    let reply = ask(&gateway, "operator", "POST /admin/v1/keys", r#"{"name":"billing"}"#).await;
    let made: Value = serde_json::from_slice(&reply.body).unwrap();
    drop(gateway);
    let gateway = start_in(dir.path(), config(upstream.addr)).await;
    assert_eq!((gateway.auth(), call_with(&gateway, &upstream, "anything").await), ("keys", 401));
    assert_eq!(call_with(&gateway, &upstream, made["key"].as_str().unwrap()).await, 200);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(dir.path().join("keys.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    std::fs::write(dir.path().join("keys.json"), "{").unwrap();
    drop(gateway);
    let options = tidegate_gateway::GatewayOptions {
        config: config(upstream.addr),
        allow_anonymous: false,
        state_dir: Some(dir.path().to_owned()),
        admin_token: None,
        own_threads: false,
        source: None,
    };
    let error = tidegate_gateway::Gateway::start(options).await.unwrap_err().to_string();
    assert!(error.contains("keys.json"), "nobody can tell who may call: {error}");
}

#[tokio::test]
async fn what_is_no_key_is_told_why_and_a_configured_one_cannot_be_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Script::listen().await;
    let mut config = config(upstream.addr);
    config.keys.push(KeyConfig { name: "configured".into(), ..KeyConfig::default() });
    let gateway = start_in(dir.path(), config).await;
    for (request, body, status, why) in [
        ("POST /admin/v1/keys", "", 400, "missing field `name`"),
        (
            "POST /admin/v1/keys",
            r#"{"name":"a b"}"#,
            400,
            "name must be 1 to 64 letters, digits, dots, underscores and dashes, not \"a b\"",
        ),
        (
            "POST /admin/v1/keys",
            r#"{"name":"a","organization":" "}"#,
            400,
            "organization must be one line of 1 to 256 char",
        ),
        ("POST /admin/v1/keys", r#"{"name":"a","project":""}"#, 400, "project must be one line of 1 to 256 characters"),
        ("POST /admin/v1/keys", r#"{"name":"a","expires":"2001-01-01"}"#, 409, "expires is over already"),
        (
            "POST /admin/v1/keys",
            r#"{"name":"a","expires":"soon"}"#,
            400,
            "expires must be a date such as 2027-01-01 or 2027-01-01T12:00:00Z, not \"soon\"",
        ),
        (
            "POST /admin/v1/keys",
            r#"{"name":"a","max_priority":"top"}"#,
            400,
            "max_priority must be low, normal or high, not \"top\"",
        ),
        (
            "POST /admin/v1/keys",
            r#"{"name":"a","paths":["files"]}"#,
            400,
            "paths must be [\"inference\"] or [\"all\"], not [\"files\"]",
        ),
        (
            "POST /admin/v1/keys",
            r#"{"name":5}"#,
            400,
            "name must be 1 to 64 letters, digits, dots, underscores and dashes, not 5;",
        ),
        (
            "POST /admin/v1/keys",
            r#"{"name":"a","paths":["all",1]}"#,
            400,
            "paths must be [\"inference\"] or [\"all\"], not [\"all\",1];",
        ),
        (
            "POST /admin/v1/keys",
            r#"{"name":"a","may_name_users":"no"}"#,
            400,
            "may_name_users must be true or false, not \"no\";",
        ),
        (
            "DELETE /admin/v1/keys/other",
            r#"{"reason":{}}"#,
            400,
            "reason must be one line of at most 500 characters, not {};",
        ),
        ("POST /admin/v1/keys", r#"{"name":"a","sha256":"00"}"#, 400, "unknown field `sha256`"),
        ("POST /admin/v1/keys", r#"{"name":"configured"}"#, 409, "there is a key \"configured\" already"),
        ("DELETE /admin/v1/keys/configured", "", 409, "is a [[key]] of the configuration"),
        ("DELETE /admin/v1/keys/other", "", 404, "no key \"other\"; there is none yet"),
    ] {
        let reply = ask(&gateway, "operator", request, body).await;
        assert_eq!(reply.status(), status, "{request} {body}: {}", reply.text());
        assert!(reply.error("message").contains(why), "{request} {body}: {}", reply.text());
    }
    let listed = done(&gateway, "GET /admin/v1/keys", "").await;
    assert_eq!(listed["keys"][0]["origin"], "configuration");
}

#[tokio::test]
async fn no_key_is_made_where_it_would_be_forwarded_or_could_not_be_kept() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Script::listen().await;
    let mut open = config(upstream.addr);
    let mut without = open.upstreams[0].clone();
    without.api_key = None;
    open.set_upstreams(vec![without]);
    let gateway = start_in(dir.path(), open).await;
    let reply = ask(&gateway, "operator", "POST /admin/v1/keys", r#"{"name":"a"}"#).await;
    assert!(reply.status() == 409 && reply.error("message").contains("is never forwarded"), "{}", reply.text());
    let (nowhere, _upstream) = scripted().await;
    let reply = ask(&nowhere, "operator", "POST /admin/v1/keys", r#"{"name":"a"}"#).await;
    assert!(reply.status() == 409 && reply.error("message").contains("no state directory"), "{}", reply.text());
}

#[tokio::test]
async fn a_key_that_cannot_be_kept_is_none_and_the_trail_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Script::listen().await;
    let gateway = start_in(dir.path(), config(upstream.addr)).await;
    // Where the file would be written before it takes its place.
    std::fs::create_dir(dir.path().join("keys.json.new")).unwrap();
    let reply = ask(&gateway, "operator", "POST /admin/v1/keys", r#"{"name":"billing"}"#).await;
    assert_eq!(reply.status(), 503, "{}", reply.text());
    assert!(reply.error("message").ends_with("nothing has changed"), "{}", reply.text());
    let listed = done(&gateway, "GET /admin/v1/keys", "").await;
    assert_eq!((&listed["needed"], &listed["keys"]), (&false.into(), &Value::Array(Vec::new())));
    assert_eq!(call_with(&gateway, &upstream, "anything").await, 200);
    let told = records(&gateway, "kind=key", 2).await;
    let said = |at: usize| ["what", "who", "after"].map(|field| told[at][field].as_str().unwrap_or_default());
    assert_eq!(
        (said(0), said(1)),
        (["created", "local", "billing"], ["created failed", "local", "billing"]),
        "{told:?}"
    );
}
