//! The JSON Schema of the configuration and the example that has every setting say the same.

use std::collections::BTreeSet;

use serde_json::Value;
use tidegate_core::config::{self, Config, EXAMPLE};

const SCHEMA: &str = include_str!("../../../../docs/tidegate.schema.json");

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

fn example() -> Value {
    let mut example = toml::from_str::<Value>(EXAMPLE).unwrap();
    // TOML's own dates are as good as texts.
    example["key"][0]["expires"] = "2099-01-01".into();
    example
}

/// What is wrong with `value`, by as much of JSON Schema as the file uses.
fn faults(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    if let Some(either) = schema["oneOf"].as_array() {
        let fits = |one: &Value| {
            let mut found = Vec::new();
            faults(one, value, path, &mut found);
            found.is_empty()
        };
        if either.iter().filter(|one| fits(one)).count() != 1 {
            found.push(format!("{path}: {value} fits none, or more than one"));
        }
        return;
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        found.push(format!("{path}: {value} is none of {words:?}"));
    }
    let is_of_type = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_u64(),
        Some("number") => value.is_number(),
        Some(other) => panic!("{path}: {other}"),
        None => true,
    };
    if !is_of_type {
        found.push(format!("{path}: {value} is no {}", schema["type"]));
    }
    if let (Some(minimum), Some(number)) = (schema["minimum"].as_f64(), value.as_f64())
        && number < minimum
    {
        found.push(format!("{path}: {value} is below {minimum}"));
    }
    for (position, item) in value.as_array().into_iter().flatten().enumerate() {
        faults(&schema["items"], item, &format!("{path}[{position}]"), found);
    }
    for (key, inner) in value.as_object().into_iter().flatten() {
        let inner_path = format!("{path}.{key}");
        match (&schema["properties"][key], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false) | Value::Null) => found.push(format!("{inner_path} is not described")),
            (Value::Null, others) => faults(others, inner, &inner_path, found),
            (described, _) => faults(described, inner, &inner_path, found),
        }
    }
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.get(required).is_none() {
            found.push(format!("{path}: {required} is missing"));
        }
    }
}

#[test]
fn the_example_fits_the_schema() {
    let mut found = Vec::new();
    faults(&schema(), &example(), "", &mut found);
    assert!(found.is_empty(), "{found:#?}");
    let mut wrong = example();
    wrong["queue"]["max_weight"] = "1s".into();
    wrong["retry"]["jitter"] = "wild".into();
    wrong["limit"]["team"]["tokens_per_minute"] = 0.into();
    faults(&schema(), &wrong, "", &mut found);
    assert_eq!(found.len(), 3, "{found:#?}");
}

/// `value` as TOML has it within a line.
fn inline(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields: Vec<String> = fields.iter().map(|(key, value)| format!("{key} = {}", inline(value))).collect();
            format!("{{ {} }}", fields.join(", "))
        }
        other => other.to_string(),
    }
}

#[test]
fn the_defaults_of_the_schema_are_the_readers_own() {
    let schema = schema();
    let mut text = String::new();
    let mut settings = 0;
    for (section, described) in schema["properties"].as_object().unwrap() {
        let properties = described["properties"].as_object().into_iter().flatten();
        text.push_str(&format!("[{section}]\n"));
        for (key, described) in properties.filter(|(_, described)| described.get("default").is_some()) {
            settings += 1;
            text.push_str(&format!("{key} = {}\n", inline(&described["default"])));
        }
        if described["type"] == "array" {
            text.truncate(text.len() - section.len() - 3);
        }
    }
    assert!(settings > 40, "{settings}");
    let loaded = config::load(&[("defaults.toml".to_owned(), text)], std::iter::empty()).unwrap();
    assert_eq!(loaded.config, Config::default());
}

#[test]
fn every_setting_is_known_to_both() {
    let mut described = BTreeSet::new();
    names(&schema(), &mut described);
    let mut written = BTreeSet::new();
    keys(&example(), &mut written);
    // Exceptions may be written for every level; the example has those of two.
    let levels = ["accounts", "keys", "projects", "users", "request_types"].map(str::to_owned);
    let unwritten: Vec<_> = described.difference(&written).filter(|name| !levels.contains(name)).collect();
    assert!(unwritten.is_empty(), "in the schema, but not in the example: {unwritten:?}");
}

/// Every name of a setting that `schema` describes.
fn names(schema: &Value, into: &mut BTreeSet<String>) {
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        into.insert(key.clone());
        names(inner, into);
    }
    for inner in ["items", "additionalProperties"].into_iter().filter_map(|inner| schema.get(inner)) {
        names(inner, into);
    }
}

/// Every key within `value`.
fn keys(value: &Value, into: &mut BTreeSet<String>) {
    for (key, inner) in value.as_object().into_iter().flatten() {
        into.insert(key.clone());
        keys(inner, into);
    }
    value.as_array().into_iter().flatten().for_each(|inner| keys(inner, into));
}
