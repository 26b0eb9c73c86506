//! Which endpoint a path names.

use http::Method;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
    Responses,
    InputTokens,
    Embeddings,
    Moderations,
    ImageGenerations,
    ImageEdits,
    Speech,
    Transcriptions,
    Models,
    Model(String),
    FileUpload,
    FileList,
    File(String),
    FileContent(String),
    FileDelete(String),
    Realtime,
}

/// Why a path names no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoute {
    /// Nothing is there: 404.
    Unknown,
    /// Something is there, but not for this method: 405.
    Method,
}

impl Endpoint {
    /// The endpoint of a method and path; the path begins with `/v1/`.
    pub(crate) fn find(method: &Method, path: &str) -> Result<Endpoint, NoRoute> {
        let rest = path.strip_prefix("/v1/").ok_or(NoRoute::Unknown)?;
        let fixed = match rest {
            "chat/completions" => Some(Endpoint::Chat),
            "completions" => Some(Endpoint::Completions),
            "responses" => Some(Endpoint::Responses),
            "responses/input_tokens" => Some(Endpoint::InputTokens),
            "embeddings" => Some(Endpoint::Embeddings),
            "moderations" => Some(Endpoint::Moderations),
            "images/generations" => Some(Endpoint::ImageGenerations),
            "images/edits" | "images/variations" => Some(Endpoint::ImageEdits),
            "audio/speech" => Some(Endpoint::Speech),
            "audio/transcriptions" | "audio/translations" => Some(Endpoint::Transcriptions),
            _ => None,
        };
        if let Some(endpoint) = fixed {
            return if method == Method::POST { Ok(endpoint) } else { Err(NoRoute::Method) };
        }
        let mut parts = rest.splitn(3, '/');
        match (parts.next(), parts.next(), parts.next(), method.as_str()) {
            (Some("realtime"), None, None, "GET") => Ok(Endpoint::Realtime),
            (Some("models"), None, None, "GET") => Ok(Endpoint::Models),
            (Some("models"), Some(id), None, "GET") => Ok(Endpoint::Model(id.to_owned())),
            (Some("files"), None, None, "POST") => Ok(Endpoint::FileUpload),
            (Some("files"), None, None, "GET") => Ok(Endpoint::FileList),
            (Some("files"), Some(id), None, "GET") => Ok(Endpoint::File(id.to_owned())),
            (Some("files"), Some(id), None, "DELETE") => Ok(Endpoint::FileDelete(id.to_owned())),
            (Some("files"), Some(id), Some("content"), "GET") => Ok(Endpoint::FileContent(id.to_owned())),
            (Some("realtime" | "models" | "files"), ..) => Err(NoRoute::Method),
            _ => Err(NoRoute::Unknown),
        }
    }

    /// Whether a call to it names a model and is metered.
    pub(crate) fn is_metered(&self) -> bool {
        !matches!(
            self,
            Endpoint::Models
                | Endpoint::Model(_)
                | Endpoint::FileUpload
                | Endpoint::FileList
                | Endpoint::File(_)
                | Endpoint::FileContent(_)
                | Endpoint::FileDelete(_)
                | Endpoint::Realtime
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_endpoints_and_others_are_told_apart() {
        let find = |method, path| Endpoint::find(&method, path);
        assert_eq!(find(Method::POST, "/v1/chat/completions"), Ok(Endpoint::Chat));
        assert_eq!(find(Method::GET, "/v1/models/gpt-4o"), Ok(Endpoint::Model("gpt-4o".into())));
        assert_eq!(find(Method::GET, "/v1/files/f1/content"), Ok(Endpoint::FileContent("f1".into())));
        assert_eq!(find(Method::GET, "/v1/chat/completions"), Err(NoRoute::Method));
        assert_eq!(find(Method::POST, "/v1/nothing"), Err(NoRoute::Unknown));
        assert_eq!(find(Method::POST, "/chat/completions"), Err(NoRoute::Unknown));
    }
}
