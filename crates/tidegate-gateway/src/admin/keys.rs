//! Decides what operators can do to keys: make one, take one away; and what viewers see of them, which is no secret.

use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use tidegate_watch::audit::{Kind, Record};

use super::Ask;
use super::answer::{Answer, json};
use super::body::{self, Field, Fields};
use super::overriding::reason_of;
use crate::keys::{KeyFault, MadeKeys, NewKey, key_expires, key_name, key_text};
use crate::operating::{self, Change, Done};
use crate::refusal::OwnReply;
use crate::shared::{Settings, Shared};

const NEW_KEY: &str = r#"{"name":"billing","organization":"acme","project":"…","user":"…","max_priority":"high","default_priority":"normal","may_name_users":true,"paths":["inference"],"expires":"2027-01-01","reason":"…"}, of which only name is needed"#;

impl Fields for NewKey {
    fn fields() -> Vec<Field> {
        let text = |name, allowed: Result<&str, String>| -> Field {
            (name, Value::is_string, allowed.err().unwrap_or_default())
        };
        let is_texts = |value: &Value| value.as_array().is_some_and(|items| items.iter().all(Value::is_string));
        let priority = "low, normal or high";
        vec![
            text("name", key_name("")),
            text("organization", key_text("")),
            text("project", key_text("")),
            text("user", key_text("")),
            text("max_priority", Err(priority.to_owned())),
            text("default_priority", Err(priority.to_owned())),
            ("may_name_users", Value::is_boolean, "true or false".to_owned()),
            ("paths", is_texts, r#"["inference"] or ["all"]"#.to_owned()),
            ("expires", Value::is_string, key_expires("").err().unwrap_or_default()),
            body::reason_field(),
        ]
    }

    const REQUIRED: &'static [&'static str] = &["name"];
}

/// Every key, without what it is told by.
pub(super) fn list(ask: &Ask) -> Answer {
    json(&ask.shared.made_keys.load().listed(&ask.shared.settings.load().config.keys))
}

/// Makes a key. The only time that it is told.
pub(super) async fn make(mut ask: Ask) -> Answer {
    #[derive(Serialize)]
    struct Made {
        name: String,
        key: String,
        #[serde(flatten)]
        done: Done,
    }
    let new: NewKey = body::read(ask.request.body_mut(), NEW_KEY).await?;
    let reason = body::reason(new.reason.clone())?;
    let (name, by) = (new.name.clone(), ask.by);
    let needed_before = ask.shared.settings.load().needs_key;
    let (told, secret) = tokio::sync::oneshot::channel();
    let mut done = operating::change(&ask.shared, move |shared, _| {
        let mut keys = MadeKeys::clone(&shared.made_keys.load());
        let name: Arc<str> = new.name.as_str().into();
        let configured = shared.settings.load();
        let made = keys.make(new, by.clone(), &configured.config.keys).map_err(refused)?;
        check(shared, &keys)?;
        let _ = told.send(made);
        let record = Record { after: Some(name), who: Some(by), why: reason, ..Record::new(Kind::Key, "created") };
        Ok(Change { record, act: Some(take_over(keys)) })
    })
    .await?;
    if !needed_before {
        done.warnings.push("from now on calls need a key".to_owned());
    }
    let Ok(key) = secret.await else { return Err(Box::new(OwnReply::draining())) };
    let mut answer = json(&Made { name, key, done })?;
    *answer.status_mut() = StatusCode::CREATED;
    Ok(answer)
}

/// Takes a key away: the next call that shows it is refused.
pub(super) async fn revoke(mut ask: Ask) -> Answer {
    let reason = reason_of(&mut ask).await?;
    let (name, by): (Arc<str>, _) = (ask.name.into(), ask.by);
    let done = operating::change(&ask.shared, move |shared, _| {
        let mut keys = MadeKeys::clone(&shared.made_keys.load());
        keys.revoke(&name, &shared.settings.load().config.keys).map_err(refused)?;
        let record = Record { before: Some(name), who: Some(by), why: reason, ..Record::new(Kind::Key, "revoked") };
        Ok(Change { record, act: Some(take_over(keys)) })
    });
    json(&done.await?)
}

/// Whether these keys go together with the configuration, and can be kept.
fn check(shared: &Shared, keys: &MadeKeys) -> Result<(), Box<OwnReply>> {
    if shared.state_dir.is_none() {
        let message = "there is no state directory to keep a key in; write a [[key]] into the configuration instead";
        return Err(Box::new(OwnReply::conflict(message)));
    }
    let settings = shared.settings.load();
    Settings::new(settings.config.clone(), keys, Some(&settings), shared.reloading.allow_anonymous)
        .map(drop)
        .map_err(|error| Box::new(OwnReply::conflict(error.to_string())))
}

/// Keeps these keys, and goes by them.
fn take_over(keys: MadeKeys) -> operating::Act {
    Box::new(move |shared| shared.take_over_keys(keys))
}

fn refused(fault: KeyFault) -> Box<OwnReply> {
    Box::new(match fault {
        KeyFault::Unknown { name, known } => OwnReply::not_known("key", &name, known.iter().map(String::as_str)),
        KeyFault::Taken(_) | KeyFault::TakenByConfiguration(_) | KeyFault::Configured(_) | KeyFault::Expired => {
            OwnReply::conflict(fault.to_string())
        }
        KeyFault::Wrong(why) => OwnReply::invalid_body(format!("{why}; send {NEW_KEY}")),
        KeyFault::File { .. } => OwnReply::unchanged(&fault.to_string()),
    })
}
