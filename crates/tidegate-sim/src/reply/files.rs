//! Uploaded files, in memory: the oldest make room for new ones.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};

const FILES_MAX: usize = 256;
const BYTES_MAX: usize = 256 << 20;

/// The files of the account.
#[derive(Default)]
pub(crate) struct Files {
    files: VecDeque<File>,
}

struct File {
    id: String,
    name: String,
    purpose: String,
    created: u64,
    data: Bytes,
}

impl Files {
    /// Keeps a file and describes it.
    pub(crate) fn add(&mut self, id: String, name: String, purpose: String, created: u64, data: Bytes) -> Value {
        let mut held = self.files.iter().map(|f| f.data.len()).sum::<usize>() + data.len();
        while self.files.len() >= FILES_MAX || held > BYTES_MAX {
            let Some(oldest) = self.files.pop_front() else { break };
            held -= oldest.data.len();
        }
        let file = File { id, name, purpose, created, data };
        let described = file.describe();
        self.files.push_back(file);
        described
    }

    /// All files, newest first.
    pub(crate) fn list(&self) -> Value {
        let data: Vec<Value> = self.files.iter().rev().map(File::describe).collect();
        let id = |file: Option<&File>| file.map(|f| f.id.clone());
        json!({
            "object": "list",
            "first_id": id(self.files.back()),
            "last_id": id(self.files.front()),
            "has_more": false,
            "data": data,
        })
    }

    /// What is known about a file; absent if there is none.
    pub(crate) fn describe(&self, id: &str) -> Option<Value> {
        self.find(id).map(File::describe)
    }

    /// A file's bytes; absent if there is none.
    pub(crate) fn content(&self, id: &str) -> Option<Bytes> {
        self.find(id).map(|f| f.data.clone())
    }

    /// Forgets a file; absent if there was none.
    pub(crate) fn delete(&mut self, id: &str) -> Option<Value> {
        let at = self.files.iter().position(|f| f.id == id)?;
        self.files.remove(at);
        Some(json!({"id": id, "object": "file", "deleted": true}))
    }

    fn find(&self, id: &str) -> Option<&File> {
        self.files.iter().find(|f| f.id == id)
    }
}

impl File {
    fn describe(&self) -> Value {
        json!({
            "id": self.id,
            "object": "file",
            "bytes": self.data.len(),
            "created_at": self.created,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": null,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_file_makes_room() {
        let mut files = Files::default();
        for i in 0..=FILES_MAX {
            files.add(format!("file-{i}"), "a".into(), "batch".into(), 0, Bytes::from_static(b"x"));
        }
        assert!(files.describe("file-0").is_none());
        assert!(files.describe("file-1").is_some());
    }
}
