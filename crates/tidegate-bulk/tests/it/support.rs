//! A simulator, a file of lines, and one run over it.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tidegate::Driver;
use tidegate_bulk::{Input, OnQuota, Options, Shape, Show, Stop, Summary, Upstream, bulk_policy};
use tidegate_core::call::Priority;
use tidegate_core::config::{Policy, SecretSource, TokenCharge, UpstreamConfig};
use tidegate_core::limit::Rates;
use tidegate_core::openai::models::ModelGroups;
use tidegate_sim::{Scenario, Simulator};

pub(crate) struct Job {
    folder: TempDir,
    pub(crate) simulator: Simulator,
    pub(crate) rates: Rates,
    pub(crate) policy: Policy,
    /// False: what is given is all that is known.
    pub(crate) learns: bool,
    pub(crate) on_quota: OnQuota,
    pub(crate) give_up_unreached_after: Duration,
    pub(crate) max_total_tokens: Option<NonZeroU64>,
    /// `None`: the simulator's.
    pub(crate) base_url: Option<String>,
}

/// Answers at once, unless the scenario says otherwise.
pub(crate) const QUICK: &str = "[latency]\nfirst_token = \"5ms\"\ntokens_per_second = 1000000.0\n";

impl Job {
    /// `model`: the table of the one model there is; `more`: faults and tenants.
    pub(crate) async fn new(model: &str, more: &str) -> Self {
        Self::answering(QUICK, model, more).await
    }

    /// `how`: the tables of latency and output.
    pub(crate) async fn answering(how: &str, model: &str, more: &str) -> Self {
        let scenario = Scenario::from_toml(&format!("{how}[model.m]\n{model}\n{more}")).unwrap();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let simulator = Simulator::start(scenario, tidegate_sim::Options::default(), listen).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        Self {
            folder,
            simulator,
            rates: Rates::default(),
            policy: Policy::default(),
            learns: true,
            on_quota: OnQuota::Stop,
            give_up_unreached_after: Duration::from_secs(60),
            max_total_tokens: None,
            base_url: None,
        }
    }

    pub(crate) fn input(&self) -> PathBuf {
        self.folder.path().join("in.jsonl")
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.folder.path().join("out.jsonl")
    }

    /// Runs a file of calls with so many characters each.
    pub(crate) async fn run(&self, chars: impl Iterator<Item = usize>) -> Summary {
        let lines: String = chars.map(|chars| line(chars, 50)).collect();
        self.run_lines(&lines, Stop::default()).await
    }

    pub(crate) async fn run_lines(&self, lines: &str, stop: Stop) -> Summary {
        let path = self.input();
        std::fs::write(&path, lines).unwrap();
        let config = UpstreamConfig {
            base_url: self.base_url.clone().unwrap_or_else(|| self.simulator.base_url()),
            api_key: Some(SecretSource::Placeholder),
            learn_limits: self.learns,
            token_charge: if self.learns { TokenCharge::Learned } else { TokenCharge::Input },
            ..UpstreamConfig::default()
        };
        let policy = Policy { upstreams: vec![config.policy()], ..self.policy.clone() };
        let options = Options {
            out: self.out(),
            shape: Shape::default(),
            upstream_name: "test".to_owned(),
            groups: ModelGroups::default(),
            priority: Priority::Low,
            on_quota: self.on_quota,
            skip_bad: false,
            retry_failed: false,
            give_up_unreached_after: self.give_up_unreached_after,
            max_total_tokens: self.max_total_tokens,
            show: Show::Nothing,
        };
        let driver = Driver::new(bulk_policy(policy, &self.rates), 7);
        let upstream = Upstream::new(&config).unwrap();
        tidegate_bulk::run(Input::new(&path).unwrap(), upstream, driver, options, stop).await.unwrap()
    }
}

/// A bare body of a chat.
pub(crate) fn line(chars: usize, max_tokens: u64) -> String {
    let text = "x".repeat(chars);
    let message = format!("{{\"role\":\"user\",\"content\":\"{text}\"}}");
    format!("{{\"model\":\"m\",\"max_completion_tokens\":{max_tokens},\"messages\":[{message}]}}\n")
}
