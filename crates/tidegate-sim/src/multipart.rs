//! Reads a multipart form into memory.

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request};
use bytes::Bytes;
use http::header;

/// The fields of a form, in order.
pub(crate) struct Form {
    fields: Vec<Field>,
}

struct Field {
    name: String,
    file_name: Option<String>,
    data: Bytes,
}

/// Reads a form; what is wrong with it is an error in words. The caller bounds the body.
pub(crate) async fn read(content_type: &str, body: Bytes) -> Result<Form, String> {
    let mut request = Request::builder()
        .method("POST")
        .header(header::CONTENT_TYPE, content_type)
        .body(Body::from(body))
        .map_err(|e| e.to_string())?;
    DefaultBodyLimit::disable().apply(&mut request);
    let mut parts = Multipart::from_request(request, &()).await.map_err(|e| e.body_text())?;
    let mut fields = Vec::new();
    while let Some(field) = parts.next_field().await.map_err(|e| e.body_text())? {
        let name = field.name().unwrap_or_default().to_owned();
        let file_name = field.file_name().map(str::to_owned);
        let data = field.bytes().await.map_err(|e| e.body_text())?;
        fields.push(Field { name, file_name, data });
    }
    Ok(Form { fields })
}

impl Form {
    /// A field as text; absent if it is not there or no text.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        let field = self.fields.iter().find(|f| f.name == name)?;
        String::from_utf8(field.data.to_vec()).ok()
    }

    /// A file's name and content. `image[]` is found as `image`.
    pub(crate) fn file(&self, name: &str) -> Option<(&str, &Bytes)> {
        let field = self.fields.iter().find(|f| f.name.trim_end_matches("[]") == name && f.file_name.is_some())?;
        Some((field.file_name.as_deref().unwrap_or("file"), &field.data))
    }
}
