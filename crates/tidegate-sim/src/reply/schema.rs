//! Makes up a value that a JSON schema accepts.

use serde_json::{Map, Value};

/// Deeper than this everything is null: a schema may refer to itself.
const DEPTH_MAX: usize = 24;

/// An example of a schema; an empty object where there is none.
pub(super) fn example(schema: &Value) -> Value {
    if !schema.is_object() {
        return Value::Object(Map::new());
    }
    fill(schema, schema, 0)
}

fn fill(schema: &Value, root: &Value, depth: usize) -> Value {
    if depth > DEPTH_MAX {
        return Value::Null;
    }
    if let Some(target) = schema["$ref"].as_str().and_then(|r| root.pointer(r.trim_start_matches('#'))) {
        return fill(target, root, depth + 1);
    }
    if let Some(value) = schema.get("const") {
        return value.clone();
    }
    if let Some(value) = schema["enum"].as_array().and_then(|e| e.first()) {
        return value.clone();
    }
    for choice in ["anyOf", "oneOf", "allOf"] {
        if let Some(first) = schema[choice].as_array().and_then(|c| c.first()) {
            return fill(first, root, depth + 1);
        }
    }
    let kind = schema["type"].as_str().or(schema["type"][0].as_str());
    match kind {
        Some("string") => Value::from("tide"),
        Some("integer") => schema.get("minimum").cloned().unwrap_or(Value::from(7)),
        Some("number") => schema.get("minimum").cloned().unwrap_or(Value::from(7.5)),
        Some("boolean") => Value::from(true),
        Some("null") => Value::Null,
        Some("array") => Value::Array(vec![fill(&schema["items"], root, depth + 1)]),
        _ => {
            let properties = schema["properties"].as_object().into_iter().flatten();
            Value::Object(properties.map(|(name, s)| (name.clone(), fill(s, root, depth + 1))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_kind_of_schema_gets_a_value() {
        let schema = json!({
            "type": "object",
            "$defs": {"unit": {"enum": ["celsius", "kelvin"]}},
            "properties": {
                "city": {"type": "string"},
                "unit": {"$ref": "#/$defs/unit"},
                "days": {"type": ["integer", "null"], "minimum": 2},
                "tags": {"type": "array", "items": {"type": "boolean"}},
                "either": {"anyOf": [{"type": "number"}, {"type": "null"}]}
            }
        });
        let expected = json!({"city": "tide", "unit": "celsius", "days": 2, "tags": [true], "either": 7.5});
        assert_eq!(example(&schema), expected);
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let schema = json!({"type": "object", "properties": {"next": {"$ref": "#"}}});
        assert!(example(&schema).to_string().len() < 1_000);
    }
}
