//! Who may ask the admin listener for what.

use sha2::{Digest, Sha256};
use tidegate_core::config::{AdminConfig, AdminRole, Config};

use crate::auditing::records;
use crate::support::*;

/// Lets `anna` look, with the token `viewer`.
pub(crate) fn with_viewer(config: &mut Config) {
    let sha256 = Sha256::digest(b"viewer").into();
    config.admins.push(AdminConfig { name: "anna".into(), sha256, role: AdminRole::Viewer });
}

/// One request to the admin listener, with that token and body.
pub(crate) async fn ask(
    gateway: &tidegate_gateway::Gateway,
    token: &str,
    method_and_path: &str,
    body: &str,
) -> Message {
    let length = body.len();
    call_admin(
        gateway,
        &format!(
            "{method_and_path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        ),
    )
    .await
}

#[tokio::test]
async fn viewers_and_operators_may_look_and_nobody_else() {
    let (gateway, _upstream) = scripted_with(with_viewer).await;
    for (token, status) in [("viewer", 200), ("operator", 200), ("other", 401), ("", 401)] {
        let reply = ask(&gateway, token, "GET /admin/v1/status", "").await;
        assert_eq!(reply.status(), status, "{token}");
        assert_eq!(reply.header("x-tidegate-role"), (status == 200).then_some(token), "a role is told to who has it");
        assert_eq!(reply.header("www-authenticate").is_some(), status == 401, "{token}");
    }
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones_and_a_wrong_path_that_it_is_none() {
    let (gateway, _upstream) = scripted().await;
    let reply = ask(&gateway, "operator", "PUT /admin/v1/status", "").await;
    assert_eq!((reply.status(), reply.header("allow")), (405, Some("HEAD, GET")));
    let page = ask(&gateway, "operator", "POST /", "").await;
    assert_eq!((page.status(), page.header("allow")), (405, Some("HEAD, GET")));
    assert_eq!(ask(&gateway, "operator", "GET /admin/v1/nothing", "").await.status(), 404);
    assert_eq!(ask(&gateway, "other", "GET /admin/v1/nothing", "").await.status(), 401);
}

#[tokio::test]
async fn who_guesses_tokens_is_held_up_and_told_of_and_who_repeats_himself_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Script::listen().await;
    let gateway = crate::operating::start_in(dir.path(), config(upstream.addr)).await;
    for _ in 0..30 {
        assert_eq!(ask(&gateway, "outdated", "GET /admin/v1/status", "").await.status(), 401);
    }
    for guess in 0..9 {
        assert_eq!(ask(&gateway, &format!("guess-{guess}"), "POST /admin/v1/pause", "").await.status(), 401);
    }
    let reply = ask(&gateway, "operator", "GET /admin/v1/status", "").await;
    assert_eq!((reply.status(), reply.header("x-tidegate-reason")), (429, Some("auth")));
    assert!(reply.header("retry-after").is_some(), "even the right one, or it could be guessed on");
    let_pass(std::time::Duration::from_secs(6)).await;
    let told = records(&gateway, "kind=override", 10).await;
    let of = |why: &str| told.iter().filter(|record| record["why"] == why).count();
    assert_eq!(of("wrong token for GET /admin/v1/status"), 1, "{told:?}");
    assert_eq!(of("wrong token for POST /admin/v1/pause"), 9, "{told:?}");
    assert_eq!(told[0]["who"], "127.0.0.1");
    assert!(!format!("{told:?}").contains("guess-"), "{told:?}");
}

#[tokio::test]
async fn guessing_does_not_lock_out_who_shows_a_token_that_was_accepted_lately_or_that_of_the_state_directory() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Script::listen().await;
    let mut config = config(upstream.addr);
    with_viewer(&mut config);
    let gateway = start_in(dir.path(), config).await;
    for guess in 0..12 {
        ask(&gateway, &format!("guess-{guess}"), "GET /admin/v1/status", "").await;
    }
    let own = std::fs::read_to_string(dir.path().join("admin-token")).unwrap();
    assert_eq!(ask(&gateway, "viewer", "GET /admin/v1/status", "").await.status(), 429, "not yet accepted");
    assert_eq!(ask(&gateway, &own, "POST /admin/v1/pause", "").await.status(), 200);
    // One guess may be made again.
    let_pass(std::time::Duration::from_secs(6)).await;
    assert_eq!(ask(&gateway, "viewer", "GET /admin/v1/status", "").await.status(), 200);
    for guess in 12..24 {
        ask(&gateway, &format!("guess-{guess}"), "GET /admin/v1/status", "").await;
    }
    assert_eq!(ask(&gateway, "guess-24", "GET /admin/v1/status", "").await.status(), 429);
    assert_eq!(ask(&gateway, "viewer", "GET /admin/v1/status", "").await.status(), 200);
}

#[tokio::test]
async fn a_role_that_is_too_little_is_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = Script::listen().await;
    let mut config = config(upstream.addr);
    with_viewer(&mut config);
    let gateway = crate::operating::start_in(dir.path(), config).await;
    assert_eq!(ask(&gateway, "viewer", "POST /admin/v1/pause", "").await.status(), 403);
    let record = records(&gateway, "kind=override", 1).await.remove(0);
    assert_eq!((&record["what"], &record["who"]), (&"denied".into(), &"anna".into()));
}

#[tokio::test]
async fn every_answer_tells_browsers_to_do_nothing_with_it_and_no_page_may_ask() {
    let (gateway, _upstream) = scripted_with(|config| {
        config.server.allowed_origins = vec!["https://app.example".to_owned()];
    })
    .await;
    for (path, token) in [
        ("GET /healthz", ""),
        ("GET /metrics", ""),
        ("GET /admin/v1/status", "operator"),
        ("GET /admin/v1/status", ""),
        ("GET /nothing", "operator"),
    ] {
        let reply = ask(&gateway, token, path, "").await;
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("x-frame-options", "DENY"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(reply.header(name), Some(value), "{path}");
        }
        assert!(reply.headers.iter().all(|(name, _)| !name.starts_with("access-control-")), "{path}");
    }
    for foreign in [
        "host: evil.example",
        "host: localhost\r\norigin: https://app.example",
        "host: localhost\r\nsec-fetch-site: cross-site",
    ] {
        let request = format!(
            "GET /admin/v1/status HTTP/1.1\r\n{foreign}\r\nauthorization: Bearer operator\r\nconnection: close\r\n\r\n"
        );
        assert_eq!(call_admin(&gateway, &request).await.status(), 403, "{foreign}");
    }
    let preflight = "OPTIONS /admin/v1/pause HTTP/1.1\r\nhost: localhost\r\norigin: https://app.example\r\n\
                     access-control-request-method: POST\r\nconnection: close\r\n\r\n";
    assert_eq!(call_admin(&gateway, preflight).await.status(), 403);
}
