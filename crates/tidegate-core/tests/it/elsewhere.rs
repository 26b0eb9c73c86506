//! A call that goes on at another upstream: what the first attempt was charged for is not charged again.

use tidegate_core::call::Call;
use tidegate_core::fault::FaultKind;
use tidegate_core::limit::{Dimension, Scope};
use tidegate_core::refusal::Next;

use crate::support::*;

fn at_azure(call: Call) -> Call {
    let mut call = call;
    call.subject.account = "azure#2".into();
    call
}

#[test]
fn a_call_that_goes_on_elsewhere_costs_own_limits_one_request_and_each_mirror_its_attempt() {
    let mut bench = Bench::with_limits(vec![
        limit("user", &[Scope::User], &[(Dimension::RequestsPerMinute, 10)]),
        limit("account", &[Scope::Account], &[(Dimension::RequestsPerMinute, 10)]),
    ]);
    let first = bench.admit(call("ada", 1));
    let next = bench.settle(first, &failed(FaultKind::QuotaExhausted, 429));
    assert!(matches!(next, Next::GiveUp(_)));
    let second = bench.admit(Call { own_charged: true, ..at_azure(call("ada", 1)) });
    bench.succeed(second, 1);
    assert_eq!(bench.remaining("user", Dimension::RequestsPerMinute), 9);
    let status = bench.gate.status(bench.now);
    let accounts: Vec<i64> = status
        .limits
        .iter()
        .filter(|level| level.limit == "account")
        .flat_map(|level| level.meters.iter().map(|meter| meter.remaining))
        .collect();
    assert_eq!(accounts, [9, 9]);
}
