//! Keeps for each model how far estimates of its input are off, as replies tell.
//!
//! Decides nothing: [`Calibration`] does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidegate_core::openai::estimate::Calibration;

use crate::call::Call;

/// Models of which it is kept; OpenAI lists about a hundred, but names are the callers' to invent.
const MODELS_MAX: usize = 1024;

/// Those of all calls under one limiter.
#[derive(Debug, Default)]
pub(crate) struct Calibrations(Mutex<HashMap<Arc<str>, Calibration>>);

/// What a good reply to a call is compared with.
#[derive(Debug)]
pub(crate) struct Lesson {
    model: Arc<str>,
    estimated: u64,
}

impl Lesson {
    /// `None`: the real input of `call` says nothing of the ratio.
    pub(crate) fn of(call: &Call) -> Option<Self> {
        call.teaches.map(|estimated| Self { model: call.subject.model.clone(), estimated })
    }
}

impl Calibrations {
    /// The call with its input estimated as such calls have taught.
    pub(crate) fn applied(&self, mut call: Call) -> Call {
        if call.calibrated_tokens > 0
            && let Some(calibration) = self.lock().get(&call.subject.model)
        {
            let rest = call.cost.input_tokens.saturating_sub(call.calibrated_tokens);
            call.cost.input_tokens = calibration.apply(call.calibrated_tokens).saturating_add(rest);
        }
        call
    }

    /// The call took `real` tokens of input, as its reply says.
    pub(crate) fn learn(&self, lesson: Lesson, real: u64) {
        let mut known = self.lock();
        if known.len() < MODELS_MAX || known.contains_key(&lesson.model) {
            known.entry(lesson.model).or_default().learn(lesson.estimated, real);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Calibration>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invented_names_take_no_room() {
        let calibrations = Calibrations::default();
        for number in 0..2 * MODELS_MAX {
            let lesson = Lesson { model: format!("invented-{number}").into(), estimated: 1000 };
            calibrations.learn(lesson, 2000);
        }
        assert_eq!(calibrations.lock().len(), MODELS_MAX);
    }

    #[test]
    fn what_a_program_says_itself_is_left_as_it_is() {
        let calibrations = Calibrations::default();
        let body = format!(r#"{{"model": "gpt-4o", "input": "{}"}}"#, "word ".repeat(800));
        let read = || Call::of_openai("POST", "/v1/responses", body.as_bytes());
        calibrations.learn(Lesson::of(&read()).unwrap(), 2000);
        assert!(calibrations.applied(read()).tokens() > read().tokens());
        assert_eq!(calibrations.applied(read().with_tokens(700, 50)).tokens(), 750);
    }
}
