//! Endpoints that name a model: faults, limiter, latency, answer.

use std::time::Duration;

use http::{HeaderValue, Response, StatusCode, header};

use super::{Answered, Call, edit_connection, error, json_reply, reply, unix_now};
use crate::asked::{self, Asked};
use crate::body::ReplyBody;
use crate::draw;
use crate::faults::Struck;
use crate::headers;
use crate::ledger::Refusal;
use crate::limiter::{Charge, Refused, Remaining};
use crate::reply::{self, Context, Reply, Said};
use crate::route::Endpoint;
use crate::scenario::{ChargeRule, Fault, FaultKind, Latency, Model, RetryAfter, Scenario};
use crate::script::{Pace, Script};
use crate::shared::Place;

const TIMER_RESOLUTION: Duration = Duration::from_micros(200);

/// A call that names a model which exists.
struct Metered<'a> {
    endpoint: &'a Endpoint,
    asked: &'a Asked,
    entry: &'a Model,
    scenario: &'a Scenario,
    place: &'a Place,
    charge: Charge,
}

pub(super) async fn answer(mut call: Call, endpoint: &Endpoint) -> Answered {
    let running = call.running.clone();
    let scenario = &running.scenario;
    let asked = asked::read(endpoint, &call.headers, &call.body).await;
    let model = match &asked {
        Ok(asked) => Some(asked.model.clone()),
        Err(wrong) => wrong.model.clone(),
    };
    call.exchange.note(|entry| entry.model.clone_from(&model));
    let known = model.as_deref().and_then(|model| Some((model, scenario.entry(model)?)));
    let Some((model, (key, entry))) = known else {
        let reply = match (&asked, &model) {
            (Err(wrong), _) => error::wrong(wrong),
            (Ok(asked), _) => error::unknown_model(&asked.model),
        };
        return Ok(call.finish_error(reply));
    };
    let place = call.shared.place(&running, &call.headers, scenario.group(model, key, entry), scenario.rules(entry));
    let asked = match asked {
        Ok(asked) => asked,
        Err(wrong) => return Ok(refuse_wrong(call, entry, &place, model, &wrong)),
    };
    let charge = asked.charge(endpoint, entry.charge);
    call.exchange.note(|entry| {
        entry.user.clone_from(&asked.user);
        entry.stream = asked.stream;
        entry.charge = charge;
    });
    let metered = Metered { endpoint, asked: &asked, entry, scenario, place: &place, charge };
    metered.go(call).await
}

/// A call that is wrong costs a request all the same.
fn refuse_wrong(
    mut call: Call,
    entry: &Model,
    place: &Place,
    model: &str,
    wrong: &asked::Wrong,
) -> Response<ReplyBody> {
    let charge = Charge::of_tokens(0);
    call.exchange.note(|entry| entry.charge = charge);
    let (remaining, refused) = call.shared.admit(place, charge);
    let mut response = match &refused {
        None => {
            call.exchange.note(|entry| entry.admitted = true);
            error::wrong(wrong)
        }
        Some((refused, form)) => {
            call.exchange.note(|entry| entry.refused = Some(Refusal::of(refused)));
            let mut response = error::refused(&call.running.scenario, model, &place.group, refused);
            headers::refusal(response.headers_mut(), *form, refused);
            response
        }
    };
    call.dress(&mut response, Some(&remaining), entry.rpd_in_headers);
    call.finish(response)
}

impl Metered<'_> {
    async fn go(&self, mut call: Call) -> Answered {
        let running = call.running.clone();
        let struck = call.strike(&running, &self.asked.model, self.asked.user.as_deref(), self.asked.stream);
        if let Some(fault) = struck.main.filter(|f| !f.is_charged()) {
            call.count_fault(fault.kind);
            let remaining = call.shared.look(self.place);
            return self.fail(call, fault, &struck, remaining).await;
        }
        let (remaining, refused) = call.shared.admit(self.place, self.charge);
        if let Some(refused) = refused {
            return Ok(self.refuse(call, refused, &struck, remaining).await);
        }
        call.exchange.note(|entry| entry.admitted = true);
        if self.entry.charge == ChargeRule::Usage {
            let rules = self.scenario.rules(self.entry);
            let place = call.shared.place(&running, &call.headers, &self.place.group, rules);
            call.exchange.debit_output(place);
        }
        if let Some(fault) = struck.main {
            call.count_fault(fault.kind);
            let goes_on = match fault.kind {
                FaultKind::Stall | FaultKind::Truncated | FaultKind::InBand => true,
                FaultKind::Reset => self.asked.stream && fault.after.is_some(),
                FaultKind::MidStreamError => self.asked.stream,
                _ => false,
            };
            if !goes_on {
                return self.fail(call, fault, &struck, remaining).await;
            }
            if fault.kind == FaultKind::Stall && !(self.asked.stream && fault.after.is_some()) {
                tokio::time::sleep(error::stall(fault)).await;
            }
        }
        self.serve(call, &struck, remaining).await
    }

    async fn refuse(
        &self,
        mut call: Call,
        (refused, form): (Refused, RetryAfter),
        struck: &Struck<'_>,
        remaining: Remaining,
    ) -> Response<ReplyBody> {
        call.exchange.note(|entry| entry.refused = Some(Refusal::of(&refused)));
        self.wait_to_refuse(&call).await;
        let mut response = error::refused(self.scenario, &self.asked.model, &self.place.group, &refused);
        headers::refusal(response.headers_mut(), form, &refused);
        call.dress(&mut response, Some(&remaining), self.entry.rpd_in_headers);
        call.finish_plain(response, &Struck { main: None, ..*struck })
    }

    /// A fault instead of an answer.
    async fn fail(&self, call: Call, fault: &Fault, struck: &Struck<'_>, remaining: Remaining) -> Answered {
        match fault.kind {
            FaultKind::Reset => return Err(call.hang_up(true)),
            FaultKind::Outage if fault.closed => return Err(call.hang_up(false)),
            _ => {}
        }
        self.wait_to_refuse(&call).await;
        let pretended = error::pretended(fault, self.charge, remaining);
        let words = error::words(self.scenario, fault, &self.asked.model, &self.place.group, &pretended);
        let mut response = words.reply(fault.kind);
        let form = call.running.next_wait();
        if fault.kind == FaultKind::RateLimit {
            headers::refusal(response.headers_mut(), form, &pretended);
        } else if let Some(wait) = fault.wait {
            headers::wait(response.headers_mut(), form, crate::scenario::micros(wait));
        }
        headers::of_fault(response.headers_mut(), fault, form);
        let from_a_proxy = matches!(fault.kind, FaultKind::BadGateway | FaultKind::GatewayTimeout | FaultKind::Outage);
        call.dress(&mut response, (!from_a_proxy).then_some(&remaining), self.entry.rpd_in_headers);
        Ok(call.finish_plain(response, struck))
    }

    async fn wait_to_refuse(&self, call: &Call) {
        sleep(scaled(self.latency().refusal, call.shared.options.speed)).await;
    }

    fn latency(&self) -> &Latency {
        self.entry.latency.as_ref().unwrap_or(&self.scenario.latency)
    }

    /// An admitted call's answer.
    async fn serve(&self, mut call: Call, struck: &Struck<'_>, remaining: Remaining) -> Answered {
        let mut rng = call.rng();
        let output = self.entry.output.as_ref().unwrap_or(&self.scenario.output);
        let (latency, speed) = (self.latency(), call.shared.options.speed);
        let first = scaled(latency.first_token.mul_f64(spread(latency.sigma, &mut rng)), speed);
        let rate = latency.tokens_per_second * spread(latency.tokens_sigma, &mut rng);
        let pace = Pace { per_token: scaled(Duration::from_secs_f64((1.0 / rate).clamp(0.0, 60.0)), speed) };
        let (asked, id) = (self.asked, call.id.clone());
        let cx = Context {
            id: &id,
            created: unix_now(),
            model: &asked.model,
            input_tokens: asked.real_input(self.endpoint),
            asked,
            chunk: output.chunk as usize,
        };
        call.exchange.note(|entry| entry.input_tokens = cx.input_tokens);
        let answers = match self.endpoint {
            Endpoint::Chat => asked.n,
            Endpoint::Completions => asked.n * asked.input.items.clamp(1, 128),
            Endpoint::Responses | Endpoint::Transcriptions => 1,
            _ => 0,
        };
        let said: Vec<Said> = (0..answers).map(|_| Said::make_up(asked, output, &mut rng)).collect();
        let tokens = said.iter().map(Said::tokens).sum();
        call.exchange.note(|entry| entry.output_tokens = tokens);
        let made = match (self.endpoint, said.first()) {
            (Endpoint::Chat, _) => Made::Reply(reply::chat(&cx, &said, pace)),
            (Endpoint::Completions, _) => Made::Reply(reply::completions(&cx, &said, pace)),
            (Endpoint::Responses, Some(said)) => Made::Reply(reply::responses(&cx, said, pace)),
            (Endpoint::Transcriptions, Some(said)) => Made::bytes(reply::transcription(&cx, said)),
            (Endpoint::InputTokens, _) => {
                let count = serde_json::json!({"object": "response.input_tokens", "input_tokens": cx.input_tokens});
                Made::Reply(Reply::Json(count))
            }
            (Endpoint::Moderations, _) => Made::Reply(Reply::Json(reply::moderations(&cx))),
            (Endpoint::ImageGenerations | Endpoint::ImageEdits, _) => {
                Made::Reply(Reply::Json(reply::images(&cx, &call.shared.origin)))
            }
            (Endpoint::Speech, _) => Made::bytes(reply::speech(&cx)),
            _ => Made::Reply(Reply::Json(reply::embeddings(&cx, &mut rng))),
        };
        let longest = said.iter().map(|s| s.pieces().len()).max().unwrap_or(0);
        let made = match struck.main {
            Some(fault) => self.spoil(&cx, made, fault, remaining),
            None => made,
        };
        let whole = pace.per_token.saturating_mul(u32::try_from(longest).unwrap_or(u32::MAX));
        match made {
            Made::Reply(Reply::Stream(script)) => {
                sleep(first).await;
                let mut response = reply(StatusCode::OK, "text/event-stream; charset=utf-8", "");
                response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
                call.dress(&mut response, Some(&remaining), self.entry.rpd_in_headers);
                call.finish_stream(script, response, struck)
            }
            Made::Reply(Reply::Json(value)) => {
                sleep(first + whole).await;
                let mut response = json_reply(StatusCode::OK, &value);
                call.dress(&mut response, Some(&remaining), self.entry.rpd_in_headers);
                Ok(call.finish_plain(response, struck))
            }
            Made::Bytes(kind, bytes) => {
                sleep(first + whole).await;
                let mut response = reply(StatusCode::OK, kind, bytes);
                call.dress(&mut response, Some(&remaining), self.entry.rpd_in_headers);
                Ok(call.finish_plain(response, struck))
            }
        }
    }

    /// What a fault makes of an answer that goes on.
    fn spoil(&self, cx: &Context<'_>, made: Made, fault: &Fault, remaining: Remaining) -> Made {
        let pretended = error::pretended(fault, self.charge, remaining);
        let words = error::words(self.scenario, fault, cx.model, &self.place.group, &pretended);
        let is_responses = *self.endpoint == Endpoint::Responses;
        let code = words.code.as_deref().unwrap_or(words.kind);
        match made {
            Made::Reply(Reply::Stream(mut script)) => {
                match fault.kind {
                    FaultKind::InBand if is_responses => {
                        // `created` and `in_progress` come first, as they do when OpenAI refuses in band.
                        script.cut(2);
                        let response = reply::failed(cx, code, &words.message);
                        let event = serde_json::json!({
                            "type": "response.failed", "sequence_number": 2, "response": response
                        });
                        script.follow(&format!("event: response.failed\ndata: {event}"));
                    }
                    FaultKind::InBand => replace_from(&mut script, fault.after.unwrap_or(0), &words, false),
                    FaultKind::MidStreamError => {
                        let after = fault.after.unwrap_or(error::EVENTS_BEFORE_FAULT);
                        replace_from(&mut script, after, &words, is_responses);
                    }
                    _ => edit_connection(&mut script, fault),
                }
                Made::Reply(Reply::Stream(script))
            }
            _ if fault.kind == FaultKind::InBand && is_responses => {
                Made::Reply(Reply::Json(reply::failed(cx, code, &words.message)))
            }
            _ if fault.kind == FaultKind::InBand => Made::Reply(Reply::Json(words.object())),
            made => made,
        }
    }
}

/// An answer before it is sent.
enum Made {
    Reply(Reply),
    Bytes(&'static str, bytes::Bytes),
}

impl Made {
    fn bytes((kind, bytes): (&'static str, impl Into<bytes::Bytes>)) -> Made {
        Made::Bytes(kind, bytes.into())
    }
}

fn replace_from(script: &mut Script, after: u32, words: &error::Words, is_responses: bool) {
    script.cut(after as usize);
    let number = script.len();
    script.follow(&words.event(is_responses, number));
}

fn spread(sigma: f64, rng: &mut fastrand::Rng) -> f64 {
    (sigma * draw::normal(rng)).exp()
}

/// A latency at this speed; none where the speed is no positive number.
fn scaled(duration: Duration, speed: f64) -> Duration {
    if speed > 0.0 {
        Duration::try_from_secs_f64(duration.as_secs_f64() / speed).unwrap_or_default()
    } else {
        Duration::ZERO
    }
}

/// Waits; not at all below what the timer, which counts milliseconds, would only blow up.
async fn sleep(duration: Duration) {
    if duration >= TIMER_RESOLUTION {
        tokio::time::sleep(duration).await;
    }
}
