//! Certificates from public CAs over the admin API.

use super::api::{Admin, Problem};
use crate::from_cas::FromCas;
use crate::from_cas::asked::AskError;
use http::StatusCode;
use serde_json::Value;

impl Admin {
    pub(super) async fn list_certificates(&self) -> Result<Value, Problem> {
        Ok(self.cas()?.list().await)
    }

    pub(super) async fn explain_certificate(&self, name: &str) -> Result<Value, Problem> {
        Ok(self.cas()?.explain(name).await)
    }

    pub(super) async fn renew_certificate(&self, name: &str) -> Result<Value, Problem> {
        self.cas()?.renew(name).await.map_err(failed)
    }

    fn cas(&self) -> Result<&FromCas, Problem> {
        let none = "this process has no certificates from CAs: acme.directory is empty, or it is no edge";
        let from_cas = self.edge.as_ref().and_then(|edge| edge.challenged());
        from_cas.ok_or_else(|| (StatusCode::CONFLICT, none.into()))
    }
}

fn failed(error: AskError) -> Problem {
    let status = match &error {
        AskError::None { .. } => StatusCode::NOT_FOUND,
        AskError::Rows(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, error.to_string())
}
