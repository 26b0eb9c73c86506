//! Decides what of an upstream's reply goes to the caller, and with which headers of ours.

use std::time::Duration;

use http::header::HeaderValue;
use http::{HeaderMap, Response, StatusCode};
use tidegate_core::openai::endpoints::Endpoint;
use tokio::time::Instant;

use crate::attempt::passing::Passing;
use crate::attempt::{Reply, Settling, Watch};
use crate::headers;
use crate::leg::Leg;
use crate::order::Order;
use crate::reply::{ReplyBody, Stamp};
use crate::say::Spoken;
use crate::sticky;

impl Order<'_> {
    /// Passes a reply on, and settles with its end.
    pub(crate) fn pass_on(
        &self,
        leg: &Leg,
        reply: Reply,
        mut settling: Settling,
        end: Option<Instant>,
        stamp: &Stamp,
    ) -> Response<ReplyBody> {
        self.learn_where(leg, &reply);
        let Reply { mut head, held, rest, watch, usage, place } = reply;
        headers::clean_reply(&mut head.headers);
        if self.settings.has_own_limits
            && let Some(levels) = settling.permit().and_then(|permit| permit.own_levels())
        {
            put_levels(&mut head.headers, &levels);
        }
        stamp.put_on(&mut head.headers);
        let body = if rest.is_none() && matches!(watch, Watch::Nothing) && self.is_read {
            settling.succeeded(usage);
            held.into_body()
        } else {
            let bounds = (leg.upstream.config.idle_timeout, end);
            ReplyBody::Passing(Box::new(Passing::new(held, rest, watch, Some(settling), bounds, place)))
        };
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        response
    }

    /// Where there are several upstreams: this one has quota, and keeps the response if it made one.
    fn learn_where(&self, leg: &Leg, reply: &Reply) {
        if self.settings.upstreams.len() < 2 {
            return;
        }
        self.shared.out_of_quota.has_some(&leg.subject.account);
        if self.is_read && self.route.endpoint == Endpoint::Responses {
            let beginning = reply.beginning();
            if let Some(id) = sticky::id_in(&beginning) {
                self.shared.made.remember(id, &leg.upstream.config.name);
            }
        }
    }

    /// Passes the upstream's last answer on as it is: what could be retried has been.
    pub(crate) fn last_answer(&self, reply: Reply, idle: Option<Duration>, stamp: &Stamp) -> Response<ReplyBody> {
        let Reply { mut head, held, rest, place, .. } = reply;
        headers::clean_reply(&mut head.headers);
        if self.is_whole() {
            head.headers.insert(headers::SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if self.settings.has_own_limits && head.status == StatusCode::TOO_MANY_REQUESTS {
            // It speaks of the upstream's limits, not of ours.
            headers::set_ratelimit_aside(&mut head.headers);
        }
        stamp.put_on(&mut head.headers);
        let body = match rest {
            None => held.into_body(),
            Some(rest) => {
                let bounds = (idle, self.reply_end);
                ReplyBody::Passing(Box::new(Passing::new(held, Some(rest), Watch::Nothing, None, bounds, place)))
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        response
    }
}

/// OpenAI's names speak of the tightest limit of our own; the upstream's numbers are set aside.
fn put_levels(headers: &mut HeaderMap, levels: &tidegate_core::gate::OwnLevels) {
    headers::set_ratelimit_aside(headers);
    for (names, level) in [(&headers::OF_REQUESTS, levels.requests), (&headers::OF_TOKENS, levels.tokens)] {
        let Some((limit, remaining, full_after_micros)) = level else { continue };
        let reset = Spoken(Duration::from_micros(full_after_micros)).to_string();
        headers.insert(&names.limit, HeaderValue::from(limit));
        headers.insert(&names.remaining, HeaderValue::from(remaining));
        headers.insert(&names.reset, HeaderValue::try_from(reset).unwrap_or_else(|_| HeaderValue::from_static("0s")));
    }
}
