//! OpenAI's errors: those that calls deserve and those that faults make.

use std::time::Duration;

use http::{Method, Response, StatusCode};
use serde_json::json;

use super::{json_reply, reply};
use crate::asked::Wrong;
use crate::body::ReplyBody;
use crate::headers::ABSURD_WAIT_MICROS;
use crate::limiter::{Charge, Dimension, Gauge, MINUTE_MICROS, Refused, Remaining};
use crate::scenario::{Fault, FaultKind, RefusalMessage, Scenario, micros};
use crate::wording::{error_object, rate_limit_message};

/// Events before a stream's error or early end, where the fault does not say.
pub(super) const EVENTS_BEFORE_FAULT: u32 = 5;
/// A stall that nobody limited.
const STALL: Duration = Duration::from_secs(3_600);

const SERVER_ERROR: &str = "The server had an error processing your request. Sorry about that! You can retry your \
                            request, or contact us through our help center at help.openai.com if you keep seeing this \
                            error.";

/// How long a stall lasts.
pub(super) fn stall(fault: &Fault) -> Duration {
    fault.lasts.unwrap_or(STALL)
}

pub(super) fn invalid(
    status: StatusCode,
    message: &str,
    param: Option<&str>,
    code: Option<&str>,
) -> Response<ReplyBody> {
    json_reply(status, &error_object(message, "invalid_request_error", param, code))
}

pub(super) fn wrong(wrong: &Wrong) -> Response<ReplyBody> {
    invalid(wrong.status, &wrong.message, wrong.param, wrong.code)
}

pub(super) fn too_long() -> Response<ReplyBody> {
    invalid(StatusCode::PAYLOAD_TOO_LARGE, "The request body is too large.", None, None)
}

pub(super) fn no_key() -> Response<ReplyBody> {
    let message = "You didn't provide an API key. You need to provide your API key in an Authorization header using \
                   Bearer auth (i.e. Authorization: Bearer YOUR_KEY).";
    invalid(StatusCode::UNAUTHORIZED, message, None, None)
}

pub(super) fn unknown_url(method: &Method, path: &str) -> Response<ReplyBody> {
    invalid(StatusCode::NOT_FOUND, &format!("Invalid URL ({method} {path})"), None, None)
}

pub(super) fn wrong_method(method: &Method, path: &str) -> Response<ReplyBody> {
    let message = format!("Not allowed to {method} on {path}.");
    invalid(StatusCode::METHOD_NOT_ALLOWED, &message, None, Some("method_not_supported"))
}

pub(super) fn unknown_model(model: &str) -> Response<ReplyBody> {
    let message = format!("The model `{model}` does not exist or you do not have access to it.");
    invalid(StatusCode::NOT_FOUND, &message, None, Some("model_not_found"))
}

pub(super) fn no_such_file(id: &str) -> Response<ReplyBody> {
    invalid(StatusCode::NOT_FOUND, &format!("No such File object: {id}"), Some("id"), None)
}

/// The limiter's refusal.
pub(super) fn refused(scenario: &Scenario, model: &str, group: &str, refused: &Refused) -> Response<ReplyBody> {
    // A minute's numbers are told as the headers tell them; the wait is always true.
    let told = refused.told(scenario.told_factor);
    let tells = scenario.refusal_message;
    let message = rate_limit_message(model, group, &scenario.organization, &told, tells);
    let kind = match tells {
        RefusalMessage::Nothing if !refused.too_large => "rate_limit_error",
        _ => refused.dimension.error_type(),
    };
    json_reply(StatusCode::TOO_MANY_REQUESTS, &error_object(&message, kind, None, Some("rate_limit_exceeded")))
}

/// A refusal as if the limit were used up. The wait is the fault's, else what the charge takes to refill.
pub(super) fn pretended(fault: &Fault, charge: Charge, remaining: Remaining) -> Refused {
    let (dimension, gauge, requested) = match (remaining.tokens, remaining.requests) {
        (Some(tokens), _) => (Dimension::Tokens, tokens, charge.tokens.max(1)),
        (None, Some(requests)) => (Dimension::Requests, requests, 1),
        (None, None) => (Dimension::Requests, Gauge { limit: 60, remaining: 0, reset_micros: MINUTE_MICROS }, 1),
    };
    let refill = u64::try_from(u128::from(requested) * u128::from(MINUTE_MICROS) / u128::from(gauge.limit.max(1)));
    let wait = match (fault.kind, fault.wait) {
        (FaultKind::RetryAfterAbsurd, _) => ABSURD_WAIT_MICROS,
        (_, Some(wait)) => micros(wait),
        (_, None) => refill.unwrap_or(u64::MAX),
    };
    Refused {
        dimension,
        too_large: false,
        limit: gauge.limit,
        used: gauge.limit,
        requested,
        wait_micros: wait.max(1),
        announced_micros: wait.max(1_000),
    }
}

/// What a fault's reply is made of.
pub(super) struct Words {
    pub(super) status: StatusCode,
    pub(super) kind: &'static str,
    pub(super) code: Option<String>,
    pub(super) message: String,
}

/// The words of a fault. `pretended` is the refusal that it may pretend.
pub(super) fn words(scenario: &Scenario, fault: &Fault, model: &str, group: &str, pretended: &Refused) -> Words {
    let limited = || rate_limit_message(model, group, &scenario.organization, pretended, scenario.refusal_message);
    let (status, kind, code, message) = match fault.kind {
        FaultKind::RateLimit | FaultKind::RetryAfterAbsurd | FaultKind::InBand => {
            (429, pretended.dimension.error_type(), Some("rate_limit_exceeded"), limited())
        }
        FaultKind::SlowDown => {
            let message = "Your request rate increased too quickly. Please slow down: keep your rate steady for at \
                           least 15 minutes and increase it gradually.";
            (429, "rate_limit_error", Some("slow_down"), message.to_owned())
        }
        FaultKind::InsufficientQuota => {
            let message = "You exceeded your current quota, please check your plan and billing details. For more \
                           information on this error, read the docs: \
                           https://platform.openai.com/docs/guides/error-codes/api-errors.";
            (429, "insufficient_quota", Some(scenario.quota_code.as_str()), message.to_owned())
        }
        FaultKind::Overloaded => {
            let message = "Our servers are currently overloaded. Please try again later.";
            (503, "service_unavailable_error", Some("server_is_overloaded"), message.to_owned())
        }
        FaultKind::RequestTimeout => (408, "server_error", None, "Request timed out.".to_owned()),
        FaultKind::Conflict => (409, "conflict_error", None, "The resource was updated by another request.".to_owned()),
        FaultKind::Unauthorized => {
            let message = "Incorrect API key provided. You can find your API key at \
                           https://platform.openai.com/account/api-keys.";
            (401, "invalid_request_error", Some("invalid_api_key"), message.to_owned())
        }
        FaultKind::ContextLength => {
            let message = format!(
                "This model's maximum context length is 8192 tokens. However, your messages resulted in {} tokens. \
                 Please reduce the length of the messages.",
                8_192 + pretended.requested
            );
            (400, "invalid_request_error", Some("context_length_exceeded"), message)
        }
        FaultKind::BadGateway => (502, "", None, "Bad Gateway".to_owned()),
        FaultKind::GatewayTimeout => (504, "", None, "Gateway Timeout".to_owned()),
        FaultKind::Unavailable | FaultKind::Outage => (503, "", None, "Service Unavailable".to_owned()),
        _ => (500, "server_error", None, SERVER_ERROR.to_owned()),
    };
    Words {
        status: StatusCode::from_u16(fault.status.unwrap_or(status)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        kind,
        code: fault.code.clone().or(code.map(str::to_owned)),
        message,
    }
}

impl Words {
    /// OpenAI's error object.
    pub(super) fn object(&self) -> serde_json::Value {
        error_object(&self.message, self.kind, None, self.code.as_deref())
    }

    /// The reply: OpenAI's envelope, or what a proxy in front of it would say.
    pub(super) fn reply(&self, kind: FaultKind) -> Response<ReplyBody> {
        match kind {
            FaultKind::BadGateway | FaultKind::GatewayTimeout => {
                let (code, text) = (self.status.as_u16(), &self.message);
                let page = format!(
                    "<html>\r\n<head><title>{code} {text}</title></head>\r\n<body>\r\n<center><h1>{code} \
                     {text}</h1></center>\r\n<hr><center>cloudflare</center>\r\n</body>\r\n</html>\r\n"
                );
                reply(self.status, "text/html", page)
            }
            FaultKind::Unavailable | FaultKind::Outage => reply(self.status, "text/plain", self.message.clone()),
            _ => json_reply(self.status, &self.object()),
        }
    }

    /// An event that ends a stream with this error: bare in chat, named and numbered in responses.
    pub(super) fn event(&self, is_responses: bool, number: usize) -> String {
        if !is_responses {
            return format!("data: {}", self.object());
        }
        let code = self.code.as_deref().unwrap_or(self.kind);
        let error = json!({
            "type": "error", "sequence_number": number, "code": code, "message": self.message, "param": null
        });
        format!("event: error\ndata: {error}")
    }
}
