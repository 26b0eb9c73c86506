//! Decides what operators can do to keys: make one, take one away; and what viewers see of them, which is no secret.

use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use tidegate_core::config::{KeyConfig, KeyPaths};
use tidegate_watch::audit::{Kind, Record};

use super::Ask;
use super::answer::{Answer, json};
use super::body::{self, Field, Fields};
use super::overriding::reason_of;
use crate::keys::{KeyFault, MadeKeys, NewKey, key_expires, key_name, key_text, shown};
use crate::operating::{self, Change, Done};
use crate::refusal::OwnReply;
use crate::shared::{Settings, Shared, unix_now};

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

#[derive(Serialize)]
struct Listed {
    name: Arc<str>,
    /// `configuration`, where the API cannot take it away, or `state directory`.
    origin: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    organization: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Arc<str>>,
    max_priority: &'static str,
    default_priority: &'static str,
    may_name_users: bool,
    paths: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    is_expired: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
}

/// Every key, without what it is told by.
pub(super) fn list(ask: &Ask) -> Answer {
    #[derive(Serialize)]
    struct List {
        /// Whether calls need one.
        needed: bool,
        keys: Vec<Listed>,
    }
    let settings = ask.shared.settings.load();
    let made = ask.shared.made_keys.load();
    let keys = made.beside(&settings.config.keys).into_iter();
    let configured = settings.config.keys.len();
    let keys = keys.enumerate().map(|(position, key)| listed(key, position < configured, &made)).collect();
    json(&List { needed: settings.needs_key, keys })
}

fn listed(key: KeyConfig, is_configured: bool, made: &MadeKeys) -> Listed {
    let made = made.find(&key.name).filter(|_| !is_configured);
    Listed {
        name: key.name,
        origin: if is_configured { "configuration" } else { "state directory" },
        organization: key.organization,
        project: key.project,
        user: key.user,
        max_priority: key.max_priority.name(),
        default_priority: key.default_priority.name(),
        may_name_users: key.may_name_users,
        paths: if key.paths == KeyPaths::All { "all" } else { "inference" },
        expires: key.expires.map(shown),
        is_expired: key.expires.is_some_and(|expires| expires <= unix_now().as_secs()),
        created_by: made.map(|made| made.created_by.clone()),
        created_at: made.map(|made| made.created_at.clone()),
    }
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
        if shared.settings.load().config.keys.iter().any(|key| *key.name == *new.name) {
            return Err(refused(KeyFault::Taken(new.name), shared));
        }
        let mut keys = MadeKeys::clone(&shared.made_keys.load());
        let name: Arc<str> = new.name.as_str().into();
        let made = keys.make(new, by.clone()).map_err(|fault| refused(fault, shared))?;
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
        if shared.settings.load().config.keys.iter().any(|key| key.name == name) {
            return Err(Box::new(OwnReply::conflict(format!(
                "key \"{name}\" is a [[key]] of the configuration: take it out there, then reload"
            ))));
        }
        let mut keys = MadeKeys::clone(&shared.made_keys.load());
        keys.revoke(&name).map_err(|fault| refused(fault, shared))?;
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

fn refused(fault: KeyFault, shared: &Shared) -> Box<OwnReply> {
    Box::new(match fault {
        KeyFault::Unknown(name) => {
            let made = shared.made_keys.load();
            OwnReply::not_known("key", &name, made.all().iter().map(|made| made.key.name.as_str()))
        }
        KeyFault::Taken(_) | KeyFault::Expired => OwnReply::conflict(fault.to_string()),
        KeyFault::Wrong(why) => OwnReply::invalid_body(format!("{why}; send {NEW_KEY}")),
        KeyFault::File { .. } => OwnReply::unchanged(&fault.to_string()),
    })
}
