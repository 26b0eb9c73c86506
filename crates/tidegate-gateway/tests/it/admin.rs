//! Who may ask the admin listener for what.

use sha2::{Digest, Sha256};
use tidegate_core::config::{AdminConfig, AdminRole, Config};

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
        assert_eq!(ask(&gateway, token, "GET /admin/v1/status", "").await.status(), status, "{token}");
    }
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones_and_a_wrong_path_that_it_is_none() {
    let (gateway, _upstream) = scripted().await;
    let reply = ask(&gateway, "operator", "PUT /admin/v1/status", "").await;
    assert_eq!((reply.status(), reply.header("allow")), (405, Some("HEAD, GET")));
    assert_eq!(ask(&gateway, "operator", "GET /admin/v1/nothing", "").await.status(), 404);
    assert_eq!(ask(&gateway, "other", "GET /admin/v1/nothing", "").await.status(), 401);
}
