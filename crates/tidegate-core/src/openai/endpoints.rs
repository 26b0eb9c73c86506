//! Decides what a path is: which endpoint, whether calls to it are metered, whom it is open to.
//!
//! Judges the decoded, normalised path, so that no spelling of a path gets round a rule; what is sent on is the edge's
//! affair, for which [`Route::irregular`] tells that spelling and meaning differ.

use std::borrow::Cow;

use crate::call::RequestType;

/// What a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `/chat/completions`.
    ChatCompletions,
    /// `/completions`.
    Completions,
    /// `/responses`.
    Responses,
    /// `/responses/compact`.
    ResponsesCompact,
    /// `/embeddings`.
    Embeddings,
    /// `/moderations`.
    Moderations,
    /// `/images/generations`, `/images/edits`, `/images/variations`.
    Images,
    /// `/audio/speech`, `/audio/transcriptions`, `/audio/translations`.
    Audio,
    /// `/responses/input_tokens`: counts, generates nothing.
    InputTokens,
    /// `/models` and below.
    Models,
    /// Any other known resource: files, batches, stored completions, realtime, …
    Other,
    /// Nothing known to exist.
    Unknown,
}

impl Endpoint {
    /// True if a `POST` to it is charged by what is in its body; every other call costs one request.
    #[must_use]
    pub const fn is_metered(self) -> bool {
        matches!(
            self,
            Self::ChatCompletions
                | Self::Completions
                | Self::Responses
                | Self::ResponsesCompact
                | Self::Embeddings
                | Self::Moderations
                | Self::Images
        )
    }

    /// Which kind of work it is.
    #[must_use]
    pub const fn request_type(self) -> RequestType {
        match self {
            Self::ChatCompletions | Self::Responses | Self::ResponsesCompact => RequestType::Chat,
            Self::Completions => RequestType::Completion,
            Self::Embeddings => RequestType::Embedding,
            Self::Images => RequestType::Image,
            Self::Moderations | Self::Audio | Self::InputTokens | Self::Models | Self::Other | Self::Unknown => {
                RequestType::Other
            }
        }
    }
}

/// What a key must be allowed, as in `paths = ["inference"]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PathClass {
    /// Asks a model for something and sees nobody's data.
    Inference,
    /// Everything else: with a shared upstream credential it shows every team's data to every team.
    All,
}

/// What is known of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route<'p> {
    /// What it asks for.
    pub endpoint: Endpoint,
    /// Decoded and normalised, without `/v1` and Azure's prefixes, with one leading slash and none at the end:
    /// `/chat/completions`.
    pub path: Cow<'p, str>,
    /// Azure: the deployment that the path names.
    pub deployment: Option<Box<str>>,
    /// Whether it came with `/v1`.
    pub versioned: bool,
    /// It holds dot segments, doubled slashes or an encoded slash: another server may read it differently. For a key that may not
    /// use every path, such a call is better refused.
    pub irregular: bool,
}

impl Route<'_> {
    /// True if a call with `method` is charged by its body.
    #[must_use]
    pub fn is_metered(&self, method: &str) -> bool {
        method == "POST" && self.endpoint.is_metered()
    }

    /// What a key must be allowed for a call with `method`: reading or deleting what is stored is never inference.
    #[must_use]
    pub fn class(&self, method: &str) -> PathClass {
        let asks = matches!(self.endpoint, Endpoint::Audio | Endpoint::InputTokens) || self.endpoint.is_metered();
        match method {
            "POST" if asks => PathClass::Inference,
            "GET" | "HEAD" if self.endpoint == Endpoint::Models => PathClass::Inference,
            _ => PathClass::All,
        }
    }
}

/// Top-level resources of the API, beside those with an endpoint of their own. Source: OpenAI's OpenAPI description.
const RESOURCES: [&str; 22] = [
    "assistants",
    "audio",
    "batches",
    "chat",
    "chatkit",
    "containers",
    "conversations",
    "evals",
    "files",
    "fine_tuning",
    "images",
    "organization",
    "projects",
    "realtime",
    "responses",
    "skills",
    "threads",
    "uploads",
    "vector_stores",
    "videos",
    "engines",
    "fine-tunes",
];

/// What `path` (without query; percent-encoded as it came, case as it is) asks for, with or without `/v1`, or as Azure
/// writes it: `/openai/deployments/NAME/chat/completions`, `/openai/v1/…`.
#[must_use]
pub fn classify_path(path: &str) -> Route<'_> {
    let path = path.split(['?', '#']).next().unwrap_or("");
    let (normal, irregular) = normalise(path);
    let (endpoint, cut_at, deployment, versioned) = read(&normal);
    let path = match normal {
        Cow::Borrowed(normal) => Cow::Borrowed(&normal[cut_at..]),
        Cow::Owned(normal) => Cow::Owned(normal[cut_at..].to_owned()),
    };
    Route { endpoint, path, deployment, versioned, irregular }
}

/// Endpoint, where the path beneath the prefixes begins, deployment, whether there was a version.
fn read(normal: &str) -> (Endpoint, usize, Option<Box<str>>, bool) {
    let mut rest = normal;
    let mut versioned = false;
    let mut deployment = None;
    if let Some(after) = below(rest, "/v1") {
        rest = after;
        versioned = true;
    }
    if let Some(azure) = below(rest, "/openai") {
        rest = azure;
        if let Some(after) = below(rest, "/v1") {
            rest = after;
            versioned = true;
        } else if let Some(named) = below(rest, "/deployments") {
            let name_end = named.get(1..).and_then(|named| named.find('/')).map_or(named.len(), |at| at + 1);
            let (name, after) = named.split_at(name_end);
            let name = name.trim_start_matches('/');
            if !name.is_empty() {
                deployment = Some(Box::from(name));
                rest = below(after, "/extensions").unwrap_or(after);
            }
        }
    }
    (endpoint(rest), normal.len() - rest.len(), deployment, versioned)
}

/// What follows `prefix`, if that is followed by a slash or nothing.
fn below<'p>(path: &'p str, prefix: &str) -> Option<&'p str> {
    path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn endpoint(path: &str) -> Endpoint {
    match path {
        "/chat/completions" => Endpoint::ChatCompletions,
        "/completions" => Endpoint::Completions,
        "/responses" => Endpoint::Responses,
        "/responses/compact" => Endpoint::ResponsesCompact,
        "/responses/input_tokens" => Endpoint::InputTokens,
        "/embeddings" => Endpoint::Embeddings,
        "/moderations" => Endpoint::Moderations,
        "/images/generations" | "/images/edits" | "/images/variations" => Endpoint::Images,
        "/audio/speech" | "/audio/transcriptions" | "/audio/translations" => Endpoint::Audio,
        // No path goes through a name with such characters in it.
        path if path.bytes().any(|byte| byte.is_ascii_control() || byte == b'\\') => Endpoint::Unknown,
        path => match path.split('/').nth(1) {
            Some("models") => Endpoint::Models,
            Some(resource) if RESOURCES.contains(&resource) => Endpoint::Other,
            _ => Endpoint::Unknown,
        },
    }
}

/// Percent-decoded once; slashes single; dot segments resolved; one slash in front, none at the end. And whether more than a
/// slash at the end had to be changed of its structure.
fn normalise(path: &str) -> (Cow<'_, str>, bool) {
    let is_normal = path.starts_with('/')
        && !path.contains('%')
        && !path.contains("//")
        && !path.contains("/.")
        && (path.len() == 1 || !path.ends_with('/'));
    if is_normal {
        return (Cow::Borrowed(path), false);
    }
    let decoded = decode(path);
    let mut irregular =
        decoded.bytes().filter(|byte| *byte == b'/').count() != path.bytes().filter(|byte| *byte == b'/').count();
    let mut segments: Vec<&str> = Vec::new();
    let inner = decoded.strip_prefix('/').unwrap_or(&decoded);
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    for segment in inner.split('/') {
        match segment {
            "" | "." => irregular |= !inner.is_empty(),
            ".." => {
                irregular = true;
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    (Cow::Owned(format!("/{}", segments.join("/"))), irregular)
}

/// What `%XX` stands for; where that is not two hexadecimal digits it stays as it is. What is no UTF-8 becomes U+FFFD.
fn decode(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let decoded = (first == b'%').then(|| after.get(..2).and_then(hexadecimal)).flatten();
        match decoded {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hexadecimal(digits: &[u8]) -> Option<u8> {
    let value = |digit: u8| char::from(digit).to_digit(16);
    match digits {
        [high, low] => u8::try_from(value(*high)? * 16 + value(*low)?).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn metered_endpoints_are_known_with_and_without_version() {
        for (path, endpoint, request_type) in [
            ("/chat/completions", Endpoint::ChatCompletions, RequestType::Chat),
            ("/completions", Endpoint::Completions, RequestType::Completion),
            ("/responses", Endpoint::Responses, RequestType::Chat),
            ("/responses/compact", Endpoint::ResponsesCompact, RequestType::Chat),
            ("/embeddings", Endpoint::Embeddings, RequestType::Embedding),
            ("/moderations", Endpoint::Moderations, RequestType::Other),
            ("/images/generations", Endpoint::Images, RequestType::Image),
            ("/images/edits", Endpoint::Images, RequestType::Image),
            ("/images/variations", Endpoint::Images, RequestType::Image),
        ] {
            for spelled in
                [path.to_owned(), format!("/v1{path}"), format!("/openai/v1{path}"), format!("/v1{path}/?a=b")]
            {
                let route = classify_path(&spelled);
                assert_eq!((route.endpoint, &*route.path), (endpoint, path), "{spelled}");
                assert!(route.is_metered("POST") && !route.is_metered("GET"), "{spelled}");
                assert_eq!((route.class("POST"), route.class("GET")), (PathClass::Inference, PathClass::All));
                assert_eq!(route.endpoint.request_type(), request_type);
                assert!(!route.irregular, "{spelled}");
            }
        }
    }

    #[test]
    fn every_known_resource_passes_unmetered() {
        for path in [
            "/audio/voices",
            "/files",
            "/files/file-1/content",
            "/uploads/u/parts",
            "/batches",
            "/fine_tuning/model_limits",
            "/assistants",
            "/threads/t/runs",
            "/vector_stores/v/search",
            "/realtime",
            "/conversations/c/items",
            "/containers",
            "/evals",
            "/videos",
            "/chat/completions/id/messages",
            "/responses/resp_1",
            "/responses/resp_1/cancel",
            "/responses/resp_1/input_items",
        ] {
            let spelled = format!("/v1{path}");
            let route = classify_path(&spelled);
            assert_eq!((route.endpoint, &*route.path), (Endpoint::Other, path));
            assert_eq!(
                (route.is_metered("POST"), route.class("POST"), route.class("GET")),
                (false, PathClass::All, PathClass::All)
            );
        }
    }

    #[test]
    fn audio_and_reading_models_are_inference() {
        for path in
            ["/v1/audio/speech", "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/responses/input_tokens"]
        {
            let route = classify_path(path);
            assert_eq!((route.class("POST"), route.is_metered("POST")), (PathClass::Inference, false), "{path}");
        }
        for path in ["/v1/models", "/models/gpt-4o", "/v1/models/ft:gpt-4o:o::i"] {
            let route = classify_path(path);
            assert_eq!(route.endpoint, Endpoint::Models);
            assert_eq!((route.class("GET"), route.class("DELETE")), (PathClass::Inference, PathClass::All));
        }
    }

    #[test]
    fn azures_paths_name_the_deployment() {
        let route = classify_path("/openai/deployments/my%20gpt-4/chat/completions?api-version=2024-02-01");
        assert_eq!((route.endpoint, route.deployment.as_deref()), (Endpoint::ChatCompletions, Some("my gpt-4")));
        assert_eq!(&*route.path, "/chat/completions");
        let route = classify_path("/v1/openai/deployments/d/extensions/chat/completions");
        assert_eq!((route.endpoint, route.deployment.as_deref()), (Endpoint::ChatCompletions, Some("d")));
        assert_eq!(classify_path("/openai/files").endpoint, Endpoint::Other);
        for path in [
            "/openai/deployments",
            "/openai/deployments/",
            "/openai/deployments/d",
            "/openai",
            "/openai/deployments//x",
        ] {
            assert_eq!(classify_path(path).endpoint, Endpoint::Unknown, "{path}");
        }
    }

    #[test]
    fn no_spelling_hides_what_a_path_is() {
        for (path, endpoint) in [
            ("/v1//chat/completions", Endpoint::ChatCompletions),
            ("//v1/chat/completions", Endpoint::ChatCompletions),
            ("/v1/chat%2Fcompletions", Endpoint::ChatCompletions),
            ("/v1/models/../files", Endpoint::Other),
            ("/v1/models/%2e%2E/files", Endpoint::Other),
            ("/v1/models/..%2ffiles", Endpoint::Other),
            ("/v1/./embeddings", Endpoint::Embeddings),
            ("/../../v1/embeddings", Endpoint::Embeddings),
            ("/v1/embeddings/.", Endpoint::Embeddings),
        ] {
            let route = classify_path(path);
            assert_eq!((route.endpoint, route.irregular), (endpoint, true), "{path}");
        }
        let route = classify_path("/v1/%63hat/completions");
        assert_eq!((route.endpoint, route.irregular), (Endpoint::ChatCompletions, false));
        // Decoded once: a server decodes once.
        assert_eq!(classify_path("/v1/%2563hat/completions").endpoint, Endpoint::Unknown);
    }

    #[test]
    fn what_does_not_exist_is_unknown() {
        for path in [
            "",
            "/",
            "/v1",
            "/v1/",
            "/v1/v1/chat/completions",
            "/v2/chat/completions",
            "/Chat/completions",
            "/V1/embeddings",
            "/v1/embedding",
            "/v1/chat\\completions",
            "/v1/files%00",
            "/favicon.ico",
            "/.env",
            "*",
            "/v1/%",
            "/v1/%zz",
        ] {
            assert_eq!(classify_path(path).endpoint, Endpoint::Unknown, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_panics_and_normal_paths_stay_as_they_are(path in "(/|\\.|%2[eEfF]|%|v1|openai|deployments|chat|completions|é|\\?){0,12}|.*") {
            let route = classify_path(&path);
            prop_assert!(!route.path.contains("//") && !route.path.split('/').any(|segment| segment == ".."));
            let path = route.path.into_owned();
            if !path.contains('%') && !path.contains(['?', '#']) {
                prop_assert!(!classify_path(&path).irregular);
            }
        }
    }
}
