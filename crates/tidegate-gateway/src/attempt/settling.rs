//! Decides how the end of an attempt is told: to the core, which settles it, and to the series. Told once, dropped or not.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tidegate::{Permit, Settled};
use tidegate_core::call::Priority;
use tidegate_core::cost::Usage;
use tidegate_core::fault::Fault;
use tidegate_core::outcome::{Ending, Outcome};
use tokio::time::Instant;

use crate::leg::Leg;
use crate::metrics::{CallEnd, TenantCalls};
use crate::model::Model;

/// One attempt under way, for the gauge.
#[derive(Debug)]
struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// An attempt that is to be settled. Dropped, it is one whose caller left: the permit's own guard then charges what was seen.
#[derive(Debug)]
pub(crate) struct Settling {
    permit: Option<Permit>,
    model: Arc<Model>,
    tenant: Option<TenantCalls>,
    priority: Priority,
    sent_at: Instant,
    first_byte_after: Option<Duration>,
    /// As estimated.
    pub(crate) input_tokens: u64,
    /// What the estimate is to be compared with, where that teaches anything.
    teaches: Option<u64>,
    _in_flight: InFlight,
}

impl Settling {
    pub(crate) fn new(permit: Permit, leg: &Leg, priority: Priority, teaches: Option<u64>) -> Self {
        let gauge = leg.model.metrics.in_flight.clone();
        gauge.inc();
        Self {
            permit: Some(permit),
            model: leg.model.clone(),
            tenant: leg.tenant.clone(),
            priority,
            sent_at: Instant::now(),
            first_byte_after: None,
            input_tokens: leg.cost.input_tokens,
            teaches,
            _in_flight: InFlight(gauge),
        }
    }

    /// The permit, until it is settled.
    pub(crate) fn permit(&mut self) -> Option<&mut Permit> {
        self.permit.as_mut()
    }

    /// The head of the reply came at `at`.
    pub(crate) fn head_came(&mut self, at: Instant) {
        let after = at.saturating_duration_since(self.sent_at);
        self.first_byte_after = Some(after);
        self.model.metrics.first_byte.observe(after.as_secs_f64());
    }

    /// The first event of a stream came at `at`: the breaker judges by that how slow it is, as a head may come long before.
    pub(crate) fn first_event_came(&mut self, at: Instant) {
        self.first_byte_after = Some(at.saturating_duration_since(self.sent_at));
    }

    /// The upstream did what was asked.
    pub(crate) fn succeeded(mut self, usage: Option<Usage>) {
        self.used(usage);
        if let (Some(estimated), Some(usage)) = (self.teaches, usage) {
            self.model.learn(estimated, usage.input_tokens);
        }
        self.close(Ending::Success, usage, CallEnd::Ok);
    }

    /// The reply broke off, or an error came within it, after part of it had gone to the caller.
    pub(crate) fn cut_short(mut self, fault: Fault, usage: Option<Usage>) {
        self.used(usage);
        self.close(Ending::CutShort(fault), usage, CallEnd::Broken);
    }

    /// The caller left, having got what `seen` stands for. `None`: not known, so that all is charged.
    pub(crate) fn cancelled(mut self, seen: Option<Usage>) {
        self.used(seen);
        if let (Some(permit), Some(seen)) = (&mut self.permit, seen) {
            permit.seen(seen);
        }
    }

    /// Nothing has gone to the caller: what follows is the core's to say. `None`: it was settled before.
    pub(crate) fn failed(mut self, fault: Fault, usage: Option<Usage>) -> Option<Settled> {
        self.used(usage);
        let permit = self.permit.take()?;
        self.model.metrics.duration.observe(self.sent_at.elapsed().as_secs_f64());
        Some(permit.settle(self.outcome(Ending::Failed(fault), usage)))
    }

    fn used(&self, usage: Option<Usage>) {
        if let Some(usage) = usage {
            self.model.metrics.input_tokens.inc_by(usage.input_tokens);
            self.model.metrics.output_tokens.inc_by(usage.output_tokens);
        }
    }

    fn close(&mut self, ending: Ending, usage: Option<Usage>, end: CallEnd) {
        let Some(permit) = self.permit.take() else { return };
        self.model.metrics.duration.observe(self.sent_at.elapsed().as_secs_f64());
        self.ended(end);
        // Neither ending leaves anything to be done.
        let _done = permit.settle(self.outcome(ending, usage));
    }

    fn ended(&self, end: CallEnd) {
        self.model.metrics.ended(self.priority, end);
        if let Some(tenant) = &self.tenant {
            tenant.ended(end);
        }
    }

    fn outcome(&self, ending: Ending, usage: Option<Usage>) -> Outcome {
        Outcome { ending, usage, first_byte_after: self.first_byte_after }
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        if self.permit.is_some() {
            self.ended(CallEnd::Cancelled);
        }
    }
}
