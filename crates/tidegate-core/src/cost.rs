//! Decides in which units calls are measured: what one asks for, and what it turned out to use.

/// What a call asks for, as estimated before it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Input tokens as the upstream counts them when it admits.
    pub input_tokens: u64,
    /// The most output tokens that may come back, over all choices (`max_tokens` × `n`).
    /// `None` where the caller set no ceiling: what such calls used before stands in.
    pub max_output_tokens: Option<u64>,
    /// Answers asked for at once (`n`), each of which may be so long where no ceiling is set. 0 counts as 1.
    pub choices: u64,
    /// Images asked for.
    pub images: u32,
    /// Tokens as the caller declared them (`x-tidegate-estimated-tokens`): only ever raises the estimate. 0 when absent.
    pub declared_tokens: u64,
}

impl Cost {
    /// Output tokens, where an answer of a call that sets no ceiling has `each`.
    #[must_use]
    pub fn output_or(&self, each: u64) -> u64 {
        self.max_output_tokens.unwrap_or_else(|| each.saturating_mul(self.choices.max(1)))
    }
}

/// What an attempt used, as the upstream reported it or, for a stream cut short, as seen go by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written, reasoning included.
    pub output_tokens: u64,
}

impl Usage {
    /// So many tokens read and written.
    #[must_use]
    pub const fn new(input_tokens: u64, output_tokens: u64) -> Self {
        Self { input_tokens, output_tokens }
    }

    /// Both kinds of tokens together.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.input_tokens.saturating_add(self.output_tokens)
    }
}
