//! The dashboard's files: open to anybody, whole, and allowed nothing beyond themselves.

use tidegate_gateway::Gateway;

use crate::support::*;

async fn get(gateway: &Gateway, path: &str, headers: &str) -> Message {
    call_admin(gateway, &format!("GET {path} HTTP/1.1\r\nhost: any.example\r\nconnection: close\r\n{headers}\r\n"))
        .await
}

/// What stands between `before` and the next quote.
fn quoted<'t>(text: &'t str, before: &'t str) -> impl Iterator<Item = &'t str> {
    text.split(before).skip(1).filter_map(|rest| rest.split('"').next())
}

#[tokio::test]
async fn the_page_and_all_that_it_names_come_from_here_and_from_nowhere_else() {
    let (gateway, _upstream) = scripted().await;
    let page = get(&gateway, "/", "").await;
    assert_eq!((page.status(), page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{policy}");
    assert!(!policy.contains("unsafe") && page.header("x-frame-options") == Some("DENY"), "{policy}");
    let text = page.text();
    for inline in ["<style", " style=", " onclick=", "javascript:"] {
        assert!(!text.contains(inline), "{inline}");
    }
    let mut named: Vec<String> = ["src=\"", "<link rel=\"stylesheet\" href=\""]
        .iter()
        .flat_map(|before| quoted(&text, before))
        .map(str::to_owned)
        .collect();
    let mut seen = Vec::new();
    while let Some(path) = named.pop() {
        if seen.contains(&path) {
            continue;
        }
        assert!(path.starts_with("/dashboard/"), "{path}");
        let file = get(&gateway, &path, "").await;
        assert_eq!(file.status(), 200, "{path}");
        named.extend(quoted(&file.text(), " from \"").map(str::to_owned));
        seen.push(path);
    }
    assert!(seen.len() >= 8, "{seen:?}");
}

#[tokio::test]
async fn a_file_that_a_browser_has_already_is_not_sent_again() {
    let (gateway, _upstream) = scripted().await;
    let file = get(&gateway, "/dashboard/app.js", "").await;
    let tag = file.header("etag").unwrap();
    let again = get(&gateway, "/dashboard/app.js", &format!("if-none-match: {tag}\r\n")).await;
    assert_eq!((again.status(), again.body.len(), again.header("etag")), (304, 0, Some(tag)));
    assert_eq!(get(&gateway, "/dashboard/../app.js", "").await.status(), 403, "its Host is for the open paths alone");
}
