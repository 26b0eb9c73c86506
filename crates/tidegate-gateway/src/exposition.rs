//! Decides in which of its two text formats Prometheus is answered: OpenMetrics where it asks for that, else the older one, which
//! every scraper and `promtool check metrics` read.

use http::{HeaderMap, header};

/// How a text is to be announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    OpenMetrics,
    Older,
}

impl Format {
    /// The one that the scraper prefers.
    pub(crate) fn wanted(headers: &HeaderMap) -> Self {
        let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let asks = accepted.into_iter().any(|value| value.contains("application/openmetrics-text"));
        if asks { Self::OpenMetrics } else { Self::Older }
    }

    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Older => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// `text`, which is in OpenMetrics, in this format.
    pub(crate) fn written(self, text: String) -> String {
        match self {
            Self::OpenMetrics => text,
            Self::Older => older(&text),
        }
    }
}

/// There a family is named as its samples are: counters with `_total`; and what is `info` is a gauge.
/// Source: Prometheus documentation, exposition formats; OpenMetrics 1.0, "Negotiation" and its appendix on the older format.
fn older(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    let mut help: Option<&str> = None;
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# HELP ") {
            // Its name is known once its type is.
            help = Some(family);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|family| family.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            if let Some((_, said)) = help.take().and_then(|family| family.split_once(' ')) {
                written += &format!("# HELP {name}{suffix} {said}\n");
            }
            written += &format!("# TYPE {name}{suffix} {kind}\n");
        } else if !line.starts_with('#') {
            written += line;
            written.push('\n');
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_older_format_names_a_family_as_its_samples() {
        let text = "# HELP tidegate_calls Calls that ended.\n# TYPE tidegate_calls counter\ntidegate_calls_total{model=\"a\"} 1\n\
                    # HELP tidegate_build The version that runs.\n# TYPE tidegate_build info\ntidegate_build_info{version=\"1\"} 1\n\
                    # HELP tidegate_wait_seconds Waits.\n# TYPE tidegate_wait_seconds histogram\n# UNIT tidegate_wait_seconds seconds\n\
                    tidegate_wait_seconds_bucket{le=\"+Inf\"} 0\n# EOF\n";
        assert_eq!(
            older(text),
            "# HELP tidegate_calls_total Calls that ended.\n# TYPE tidegate_calls_total counter\n\
             tidegate_calls_total{model=\"a\"} 1\n\
             # HELP tidegate_build_info The version that runs.\n# TYPE tidegate_build_info gauge\n\
             tidegate_build_info{version=\"1\"} 1\n\
             # HELP tidegate_wait_seconds Waits.\n# TYPE tidegate_wait_seconds histogram\n\
             tidegate_wait_seconds_bucket{le=\"+Inf\"} 0\n"
        );
    }

    #[test]
    fn a_scraper_gets_what_it_asks_for() {
        let mut headers = HeaderMap::new();
        assert_eq!(Format::wanted(&headers), Format::Older);
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        headers.insert(header::ACCEPT, HeaderValue::from_static(prometheus));
        assert_eq!(Format::wanted(&headers), Format::OpenMetrics);
    }
}
