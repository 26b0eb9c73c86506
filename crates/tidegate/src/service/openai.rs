//! The layers within async-openai, whose requests are recipes: each attempt makes one anew, files and all.

use async_openai::Client;
use async_openai::config::Config;
use async_openai::error::OpenAIError;
use async_openai::middleware::{HttpRequestFactory, ReqwestService};
use tower_layer::Layer;

use super::{AsCall, Repeatable, TidegateLayer, reqwest::call_of};
use crate::call::Call;
use crate::error::{BoxError, Error};
use crate::fault::ToFault;
use crate::tidegate::Tidegate;
use tidegate_core::fault::{Fault, FaultKind};

/// Made once to see what it costs; once more for each attempt.
impl AsCall for HttpRequestFactory {
    async fn call(&self) -> Result<Call, BoxError> {
        Ok(call_of(&self.build().await?))
    }
}

impl Repeatable for HttpRequestFactory {
    fn again(&self) -> Option<Self> {
        Some(self.clone())
    }
}

/// The same error where the upstream gave one of its own, else ours, boxed: `OpenAIError::Boxed` can be downcast to [`Error`].
impl From<Error> for OpenAIError {
    fn from(error: Error) -> Self {
        match error {
            Error::Upstream { fault, error } => match error.downcast::<Self>() {
                Ok(theirs) => *theirs,
                Err(error) => Self::Boxed(Box::new(Error::Upstream { fault, error })),
            },
            ours => Self::Boxed(Box::new(ours)),
        }
    }
}

impl ToFault for OpenAIError {
    fn to_fault(&self) -> Fault {
        match self {
            Self::Reqwest(error) => error.to_fault(),
            Self::ApiError(reply) => {
                let mut fault = Fault::of_status(reply.status_code.as_u16());
                fault.code = reply.api_error.code.as_deref().map(Box::from);
                fault
            }
            Self::StreamError(_) => Fault::new(FaultKind::Broken, "the reply broke off"),
            Self::Boxed(error) => error.to_fault(),
            Self::JSONDeserialize(..) => Fault::new(FaultKind::Server, "a reply that cannot be read"),
            _ => Fault::new(FaultKind::Invalid, "the request is wrong"),
        }
    }
}

impl From<OpenAIError> for Error {
    fn from(error: OpenAIError) -> Self {
        let fault = Box::new(error.to_fault());
        match error {
            OpenAIError::Boxed(error) => Self::of_upstream(fault, error),
            error => Self::of_upstream(fault, Box::new(error)),
        }
    }
}

/// The whole of async-openai's API, under `tidegate`: chat, responses, embeddings, files and all else, streams included.
///
/// Its own retrying is replaced, so that there is one owner of retries. Where a client is made by other means, give it
/// `.with_http_service(TidegateLayer::new(tidegate).layer(ReqwestService::new(http)))`.
///
/// ```no_run
/// # async fn run() -> Result<(), async_openai::error::OpenAIError> {
/// use async_openai::config::OpenAIConfig;
/// use tidegate::Tidegate;
///
/// let client = tidegate::openai_client(OpenAIConfig::default(), &Tidegate::builder().build());
/// let models = client.files().list().await?;
/// # Ok(())
/// # }
/// ```
pub fn openai_client<C: Config>(config: C, tidegate: &Tidegate) -> Client<C> {
    choose_crypto();
    let http = ::reqwest::Client::new();
    let service = TidegateLayer::new(tidegate.clone()).layer(ReqwestService::new(http.clone()));
    Client::build(http, config).with_http_service(service)
}

/// Chooses who encrypts, unless the program has.
pub(crate) fn choose_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
