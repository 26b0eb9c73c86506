//! Families that say what they are before they have a series: dashboards and rules find every name from the first scrape on.

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;

/// A family whose help and type are there although nothing has been counted yet.
#[derive(Debug)]
pub(super) struct Declared<M>(pub(super) M);

// All but `is_empty`, for which a registry would leave it out.
impl<M: EncodeMetric> EncodeMetric for Declared<M> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> std::fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}
