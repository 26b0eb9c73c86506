//! Reads `[[key]]` and `[[admin]]`.

use std::sync::Arc;

use super::table::{Field, Table};
use super::values::{boolean, choice, instant, one_or_more, priority, sha256, shared};
use super::{check_unique, named};
use crate::config::{AdminConfig, AdminRole, KeyConfig, KeyPaths};

pub(super) fn keys(tables: Vec<Table<'_>>) -> Vec<KeyConfig> {
    let (mut names, mut hashes) = (Vec::new(), Vec::new());
    let mut keys = Vec::new();
    for table in tables {
        let (place, report) = (table.place, table.report);
        let Some(key) = key(table) else { continue };
        check_unique(&mut names, &key.name, place, "key", report);
        check_unique(&mut hashes, &key.sha256, place, "sha256 of a key", report);
        keys.push(key);
    }
    keys
}

fn key(table: Table<'_>) -> Option<KeyConfig> {
    let (mut table, name, sha256) = identity(table);
    let mut key = KeyConfig::default();
    table.set_some("organization", &mut key.organization, shared);
    table.set_some("user", &mut key.user, shared);
    table.set_some("project", &mut key.project, shared);
    table.set("max_priority", &mut key.max_priority, priority);
    key.default_priority = key.default_priority.min(key.max_priority);
    table.set("default_priority", &mut key.default_priority, priority);
    if key.default_priority > key.max_priority
        && let Some(field) = table.field("default_priority")
    {
        field.error(
            format!("{} is above max_priority {}", key.default_priority.name(), key.max_priority.name()),
            "lower it or raise max_priority",
        );
    }
    table.set("may_name_users", &mut key.may_name_users, boolean);
    table.set("paths", &mut key.paths, paths);
    table.set_some("expires", &mut key.expires, instant);
    table.finish();
    Some(KeyConfig { name: name?, sha256: sha256?, ..key })
}

/// The table under its name, and what every holder of a secret has.
fn identity(mut table: Table<'_>) -> (Table<'_>, Option<Arc<str>>, Option<[u8; 32]>) {
    let (mut name, mut hash) = (None, None);
    table.set_some("name", &mut name, shared);
    if !table.has("name") {
        table.missing("name", "write name = \"…\"");
    }
    if let Some(name) = &name {
        table = named(table, name);
    }
    table.set_some("sha256", &mut hash, sha256);
    if !table.has("sha256") {
        table.missing("sha256", "write the SHA-256 of the secret as 64 hexadecimal digits");
    }
    (table, name, hash)
}

fn paths(field: &Field<'_>) -> Option<KeyPaths> {
    let words = one_or_more(field, |item| choice(item, &[("inference", KeyPaths::Inference), ("all", KeyPaths::All)]))?;
    if words.is_empty() {
        field.error("must name what the key may use", "write [\"inference\"] or [\"all\"]");
        return None;
    }
    Some(if words.contains(&KeyPaths::All) { KeyPaths::All } else { KeyPaths::Inference })
}

pub(super) fn admins(tables: Vec<Table<'_>>) -> Vec<AdminConfig> {
    let (mut names, mut hashes) = (Vec::new(), Vec::new());
    let mut admins = Vec::new();
    for table in tables {
        let (place, report) = (table.place, table.report);
        let Some(admin) = admin(table) else { continue };
        check_unique(&mut names, &admin.name, place, "admin", report);
        check_unique(&mut hashes, &admin.sha256, place, "sha256 of an admin", report);
        admins.push(admin);
    }
    admins
}

fn admin(table: Table<'_>) -> Option<AdminConfig> {
    let (mut table, name, sha256) = identity(table);
    let mut role = AdminRole::default();
    table.set("role", &mut role, |field| {
        choice(field, &[("viewer", AdminRole::Viewer), ("operator", AdminRole::Operator)])
    });
    table.finish();
    Some(AdminConfig { name: name?, sha256: sha256?, role })
}
