//! Decides how a program says what it wants done: for whom, at which model, how dearly, how urgently.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tidegate_core::call as core;
use tidegate_core::call::{Priority, RequestType, Subject, WhenOpen};
use tidegate_core::cost::Cost;
use tidegate_core::openai::endpoints::{self, Endpoint};
use tidegate_core::openai::estimate::{self, Calibration};
use tidegate_core::openai::models;
use tidegate_core::time::Time;

static ACCOUNT: LazyLock<Arc<str>> = LazyLock::new(|| "openai".into());
static ANONYMOUS: LazyLock<Arc<str>> = LazyLock::new(|| "anonymous".into());

/// One thing to be done, whatever number of attempts it takes.
///
/// Made once it can be used for many calls: nothing is copied but counters of references. Its id then stands for all of them.
///
/// ```
/// use tidegate::{Call, Priority};
///
/// let call = Call::new("gpt-4o-mini").with_user("anna").with_tokens(1200, 300).with_priority(Priority::High);
/// ```
#[derive(Clone, Debug)]
pub struct Call {
    pub(crate) id: Arc<str>,
    pub(crate) subject: Subject,
    pub(crate) cost: Cost,
    pub(crate) priority: Priority,
    pub(crate) max_wait: Option<Duration>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) when_open: WhenOpen,
    /// To which endpoint of OpenAI's it goes, where its reply tells how many tokens it used.
    pub(crate) endpoint: Option<Endpoint>,
    /// Of the input, the tokens that were counted by bytes and may be set right by what such calls really took.
    pub(crate) calibrated_tokens: u64,
    /// What its real input is compared with, where that teaches anything.
    pub(crate) teaches: Option<u64>,
}

impl Call {
    /// A call of `model`, under an id of its own, that costs one request and no tokens.
    ///
    /// Models that share a limit are one: `gpt-4o-2024-08-06` is `gpt-4o` here.
    #[must_use]
    pub fn new(model: &str) -> Self {
        static CALLS: AtomicU64 = AtomicU64::new(1);
        Self {
            id: format!("call_{}", CALLS.fetch_add(1, Ordering::Relaxed)).into(),
            subject: Subject {
                account: ACCOUNT.clone(),
                model: models::family(model).into(),
                key: None,
                organization: None,
                project: None,
                user: None,
                request_type: RequestType::Chat,
                tenant: ANONYMOUS.clone(),
            },
            cost: Cost { max_output_tokens: Some(0), ..Cost::default() },
            priority: Priority::Normal,
            max_wait: None,
            timeout: None,
            when_open: WhenOpen::Refuse,
            endpoint: None,
            calibrated_tokens: 0,
            teaches: None,
        }
    }

    /// The call that a request to OpenAI's API is: model, tokens, user and kind of work as its path and body tell.
    ///
    /// What cannot be read costs one request; whether it is a good one is the API's to say.
    #[must_use]
    pub fn of_openai(method: &str, path: &str, body: &[u8]) -> Self {
        let route = endpoints::classify_path(path);
        let request_type = route.endpoint.request_type();
        if !route.is_metered(method) {
            return Self::new("").with_request_type(request_type);
        }
        let unread = || estimate::Request::unread(route.endpoint);
        let request = estimate::parse(route.endpoint, body).unwrap_or_else(|_| unread());
        let model = request.model.as_deref().or(route.deployment.as_deref()).unwrap_or("");
        let mut call = Self::new(model).with_request_type(request_type);
        call.cost = estimate::estimate(&request, &Calibration::default());
        call.endpoint = Some(route.endpoint);
        call.calibrated_tokens = request.calibrated_tokens();
        call.teaches = request.teaches();
        call.subject.user = request.named_user().map(Arc::from);
        call
    }

    /// The same with the credential that it is made with: each has limits of its own upstream.
    #[cfg(feature = "tower")]
    pub(crate) fn of_account(mut self, headers: &http::HeaderMap) -> Self {
        use std::hash::{DefaultHasher, Hash, Hasher};
        const ACCOUNT: [&str; 4] = ["authorization", "api-key", "openai-organization", "openai-project"];
        let mut hasher = DefaultHasher::new();
        let mut any = false;
        for value in ACCOUNT.map(|name| headers.get(name)) {
            any |= value.is_some();
            value.map(http::HeaderValue::as_bytes).hash(&mut hasher);
        }
        if any {
            self.subject.account = format!("openai#{:016x}", hasher.finish()).into();
        }
        self
    }

    /// To which of OpenAI's endpoints it goes: where that takes tokens its reply is read for what it used and for errors that come
    /// in its body. Absent: as the path of an HTTP request says, of one that is no HTTP request nothing is read.
    #[must_use]
    pub fn with_endpoint(mut self, method: &str, path: &str) -> Self {
        let route = endpoints::classify_path(path);
        self.endpoint = route.is_metered(method).then_some(route.endpoint);
        self
    }

    /// The same, unless that is known already.
    #[cfg(feature = "tower")]
    pub(crate) fn or_endpoint(self, method: &str, path: &str) -> Self {
        if self.endpoint.is_some() { self } else { self.with_endpoint(method, path) }
    }

    /// The name under which it appears in events.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<Arc<str>>) -> Self {
        self.id = id.into();
        self
    }

    /// The end user. Calls without one share a level of limits that are per user.
    #[must_use]
    pub fn with_user(mut self, user: impl Into<Arc<str>>) -> Self {
        self.subject.user = Some(user.into());
        self
    }

    /// The organization; the queue is fair between organizations.
    #[must_use]
    pub fn with_organization(mut self, organization: impl Into<Arc<str>>) -> Self {
        let organization = organization.into();
        self.subject.tenant = organization.clone();
        self.subject.organization = Some(organization);
        self
    }

    /// The project, for limits that are per project.
    #[must_use]
    pub fn with_project(mut self, project: impl Into<Arc<str>>) -> Self {
        self.subject.project = Some(project.into());
        self
    }

    /// By which key of the program's own the caller is known, for limits that are per key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Arc<str>>) -> Self {
        self.subject.key = Some(key.into());
        self
    }

    /// The name of the account at OpenAI that it is made with; each has limits of its own there. Absent: the one there is, or of
    /// an HTTP request that of its credential.
    #[must_use]
    pub fn with_account(mut self, account: &str) -> Self {
        self.subject.account = format!("{}#{account}", *ACCOUNT).into();
        self
    }

    /// What kind of work it is. Absent: chat.
    #[must_use]
    pub fn with_request_type(mut self, request_type: RequestType) -> Self {
        self.subject.request_type = request_type;
        self
    }

    /// Tokens in all, as estimated: they are charged when it is admitted, and set right when it is settled.
    #[must_use]
    pub fn with_estimated_tokens(mut self, tokens: u64) -> Self {
        self.cost.declared_tokens = tokens;
        self
    }

    /// Tokens that go in, and the most that may come out; instead of an estimate of both together.
    #[must_use]
    pub fn with_tokens(mut self, input: u64, max_output: u64) -> Self {
        self.cost.max_output_tokens = Some(max_output);
        self.input_is(input)
    }

    /// Tokens that go in, where nothing bounds what comes out: what such calls wrote before is expected.
    #[must_use]
    pub fn with_input_tokens(mut self, input: u64) -> Self {
        self.cost.max_output_tokens = None;
        self.input_is(input)
    }

    /// Images asked for.
    #[must_use]
    pub fn with_images(mut self, images: u32) -> Self {
        self.cost.images = images;
        self
    }

    /// How urgent it is. Absent: normal.
    #[must_use]
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// How long it may wait, for its turn and between attempts together. Absent: as configured.
    #[must_use]
    pub fn with_max_wait(mut self, max_wait: Duration) -> Self {
        self.max_wait = Some(max_wait);
        self
    }

    /// How long it may take in all. Absent: as configured.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Waits for an open circuit breaker to close, up to `max_wait`, where it would otherwise be refused at once: for bulk work.
    #[must_use]
    pub fn waiting_while_open(mut self) -> Self {
        self.when_open = WhenOpen::Wait;
        self
    }

    /// The name under which it appears in events.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The model, or the group of models with which it shares limits. Empty: not known.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.subject.model
    }

    /// The end user.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.subject.user.as_deref()
    }

    /// The organization.
    #[must_use]
    pub fn organization(&self) -> Option<&str> {
        self.subject.organization.as_deref()
    }

    /// Tokens that it asks for: what goes in and the most that may come out, as far as that is bounded, or the estimate of both
    /// together where that is more.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.cost.input_tokens.saturating_add(self.cost.output_or(0)).max(self.cost.declared_tokens)
    }

    const fn input_is(mut self, tokens: u64) -> Self {
        self.cost.input_tokens = tokens;
        // Whoever says it knows it.
        self.calibrated_tokens = 0;
        self
    }

    /// The same in the core's words, from `now` on.
    pub(crate) fn at(&self, now: Time, max_wait: Duration, total_timeout: Option<Duration>) -> core::Call {
        let end_by = [self.timeout, total_timeout].into_iter().flatten().min().map_or(Time::NEVER, |bound| now + bound);
        core::Call {
            id: self.id.clone(),
            subject: self.subject.clone(),
            cost: self.cost,
            priority: self.priority,
            start_by: (now + self.max_wait.unwrap_or(max_wait)).min(end_by),
            end_by,
            when_open: self.when_open,
            body_bytes: 0,
            own_charged: false,
        }
    }
}
