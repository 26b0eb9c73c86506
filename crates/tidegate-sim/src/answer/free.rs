//! Endpoints that name no model: nothing is metered there, but faults strike.

use http::request::Parts;
use http::{Response, StatusCode, header};

use axum::extract::FromRequestParts;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use tokio::sync::watch;

use super::{Answered, Call, error, json_reply, reply, unix_now};
use crate::body::ReplyBody;
use crate::faults::Struck;
use crate::headers;
use crate::limiter::{Charge, Remaining};
use crate::multipart;
use crate::reply;
use crate::route::Endpoint;
use crate::scenario::{Fault, FaultKind};

pub(super) async fn answer(mut call: Call, endpoint: &Endpoint) -> Answered {
    let running = call.running.clone();
    let struck = call.strike(&running, "", None, false);
    if let Some(fault) = struck.main {
        call.count_fault(fault.kind);
        match fault.kind {
            FaultKind::Stall => tokio::time::sleep(error::stall(fault)).await,
            FaultKind::Truncated => {}
            _ => return fail(call, fault, &struck),
        }
    }
    let mut response = plain(&call, endpoint).await;
    call.dress(&mut response, None, false);
    Ok(call.finish_plain(response, &struck))
}

/// A fault instead of an answer.
fn fail(call: Call, fault: &Fault, struck: &Struck<'_>) -> Answered {
    match fault.kind {
        FaultKind::Reset => return Err(call.hang_up(true)),
        FaultKind::Outage if fault.closed => return Err(call.hang_up(false)),
        _ => {}
    }
    let scenario = &call.running.scenario;
    let pretended = error::pretended(fault, Charge::of_tokens(0), Remaining::default());
    let mut response = error::words(scenario, fault, "", "", &pretended).reply(fault.kind);
    let form = call.running.next_wait();
    if fault.kind == FaultKind::RateLimit {
        headers::refusal(response.headers_mut(), form, &pretended);
    }
    headers::of_fault(response.headers_mut(), fault, form);
    call.dress(&mut response, None, false);
    Ok(call.finish_plain(response, struck))
}

async fn plain(call: &Call, endpoint: &Endpoint) -> Response<ReplyBody> {
    let shared = &call.shared;
    match endpoint {
        Endpoint::Models => json_reply(StatusCode::OK, &reply::models(&call.running.scenario)),
        Endpoint::Model(name) => match call.running.scenario.entry(name) {
            Some(_) => json_reply(StatusCode::OK, &reply::model(name)),
            None => error::unknown_model(name),
        },
        Endpoint::FileUpload => upload(call).await,
        Endpoint::FileList => json_reply(StatusCode::OK, &shared.with_files(|files| files.list())),
        Endpoint::File(id) => found(id, shared.with_files(|files| files.describe(id))),
        Endpoint::FileDelete(id) => found(id, shared.with_files(|files| files.delete(id))),
        Endpoint::FileContent(id) => match shared.with_files(|files| files.content(id)) {
            Some(data) => reply(StatusCode::OK, "application/octet-stream", data),
            None => error::no_such_file(id),
        },
        _ => error::unknown_url(&http::Method::GET, &call.path),
    }
}

fn found(id: &str, file: Option<serde_json::Value>) -> Response<ReplyBody> {
    file.map_or_else(|| error::no_such_file(id), |file| json_reply(StatusCode::OK, &file))
}

async fn upload(call: &Call) -> Response<ReplyBody> {
    let bad = |message: &str, param| error::invalid(StatusCode::BAD_REQUEST, message, param, None);
    let kind = call.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let form = match multipart::read(kind, call.body.clone()).await {
        Ok(form) => form,
        Err(message) => return bad(&message, None),
    };
    let Some(purpose) = form.text("purpose") else { return bad("'purpose' is a required property", Some("purpose")) };
    let Some((name, data)) = form.file("file") else { return bad("'file' is a required property", Some("file")) };
    let id = format!("file-{}", &call.id[..24]);
    let file = call.shared.with_files(|f| f.add(id, name.to_owned(), purpose, unix_now(), data.clone()));
    json_reply(StatusCode::OK, &file)
}

/// Upgrades to a WebSocket that sends back whatever it is sent, until it is closed or the simulator stops.
pub(super) async fn realtime(mut call: Call, parts: &mut Parts, stop: watch::Receiver<bool>) -> Answered {
    let running = call.running.clone();
    let struck = call.strike(&running, "", None, true);
    if let Some(fault) = struck.main {
        call.count_fault(fault.kind);
        match fault.kind {
            FaultKind::Stall => tokio::time::sleep(error::stall(fault)).await,
            _ => return fail(call, fault, &struck),
        }
    }
    let upgrade = match WebSocketUpgrade::from_request_parts(parts, &()).await {
        Ok(upgrade) => upgrade,
        Err(rejection) => {
            let response = error::invalid(rejection.status(), &rejection.body_text(), None, None);
            return Ok(call.finish_error(response));
        }
    };
    call.exchange.note(|entry| {
        entry.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
        entry.stream = true;
    });
    call.exchange.streaming();
    // The SDKs offer `realtime` first and their credentials behind it.
    let response = upgrade.protocols(["realtime"]).on_upgrade(async move |socket| {
        echo(socket, stop).await;
        call.exchange.finish();
    });
    let (parts, _) = response.into_parts();
    Ok(Response::from_parts(parts, ReplyBody::Whole(None)))
}

async fn echo(mut socket: WebSocket, mut stop: watch::Receiver<bool>) {
    loop {
        let message = tokio::select! {
            message = socket.recv() => message,
            _ = stop.changed() => return,
        };
        let echoed = match message {
            Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => socket.send(message).await,
            Some(Ok(Message::Close(_))) | Some(Err(_)) | None => return,
            Some(Ok(_)) => Ok(()),
        };
        if echoed.is_err() {
            return;
        }
    }
}
