//! What the admin listener tells of alerts.

use bytes::Bytes;
use serde::Serialize;
use tidegate_core::config::WebhookFormat;
use tidegate_watch::alert::{CALLS_MIN, Standing, WINDOW};

use super::post::Told;
use crate::refusal::OwnReply;
use crate::shared::Shared;

#[derive(Serialize)]
struct Page {
    /// Over what shares, quantiles and losses are taken.
    window_seconds: u64,
    /// Of fewer calls no share is taken.
    calls_min: u64,
    alerts: Vec<View>,
}

#[derive(Serialize)]
struct View {
    #[serde(flatten)]
    standing: Standing,
    /// `null`: it is only logged.
    webhook: Option<WebhookView>,
}

#[derive(Serialize)]
struct WebhookView {
    /// Scheme and host alone: the rest opens it.
    url: String,
    format: &'static str,
    #[serde(flatten)]
    told: Told,
}

/// `{"window_seconds":60,"calls_min":10,"alerts":[{"name":…,"state":"quiet",…,"webhook":{…}},…]}`
pub(crate) fn answer(shared: &Shared) -> Result<Bytes, Box<OwnReply>> {
    let state = shared.alerting.lock();
    let alerts = state.alerts.standings().into_iter().zip(&state.posts).map(|(standing, post)| View {
        standing,
        webhook: post.as_ref().map(|post| WebhookView {
            url: post.destination().shown(),
            format: match post.destination().format {
                WebhookFormat::Generic => "generic",
                WebhookFormat::Slack => "slack",
            },
            told: post.told(),
        }),
    });
    let page = Page { window_seconds: WINDOW.as_secs(), calls_min: CALLS_MIN, alerts: alerts.collect() };
    serde_json::to_vec(&page)
        .map(Bytes::from)
        .map_err(|error| Box::new(OwnReply::bad_request(format!("the alerts cannot be written: {error}"))))
}
