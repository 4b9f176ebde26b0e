//! Certificates from public CAs over the admin API.

use super::api::{Admin, Problem, optional};
use crate::from_cas::FromCas;
use crate::from_cas::asked::AskError;
use acme::account::AccountError;
use http::StatusCode;
use serde::Deserialize;
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

    pub(super) async fn compromise_certificate(&self, name: &str) -> Result<Value, Problem> {
        self.cas()?.compromise(name).await.map_err(failed)
    }

    pub(super) async fn roll_account_over(&self, body: &[u8]) -> Result<Value, Problem> {
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Asked {
            ca: Option<String>,
        }
        let asked: Asked = optional(body, "the body names no CA")?;
        self.cas()?.roll_over(asked.ca.as_deref()).await.map_err(failed)
    }

    pub(super) async fn distrust_ca(&self, ca: &str, is: bool) -> Result<Value, Problem> {
        self.cas()?.distrust(ca, is).await.map_err(failed)
    }

    pub(super) async fn show_keks(&self) -> Result<Value, Problem> {
        self.cas()?.keks().await.map_err(failed)
    }

    pub(super) async fn rewrap(&self, body: &[u8]) -> Result<Value, Problem> {
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Asked {
            #[serde(default)]
            new_data_key: bool,
        }
        let asked: Asked = optional(body, "the body says no new_data_key")?;
        self.cas()?.rewrap(asked.new_data_key).await.map_err(failed)
    }

    fn cas(&self) -> Result<&FromCas, Problem> {
        let none = "this process has no certificates from CAs: acme.directory is empty, or it is no edge";
        let from_cas = self.edge.as_ref().and_then(|edge| edge.challenged());
        from_cas.ok_or_else(|| (StatusCode::CONFLICT, none.into()))
    }
}

fn failed(error: AskError) -> Problem {
    let status = match &error {
        AskError::None { .. } | AskError::Ca(_) => StatusCode::NOT_FOUND,
        AskError::Account(AccountError::Problem(_)) => StatusCode::BAD_GATEWAY,
        AskError::Kek { .. } | AskError::LastCa(_) => StatusCode::CONFLICT,
        AskError::Seal(_) | AskError::Keys(_) | AskError::Account(_) | AskError::Rows(_) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    (status, error.to_string())
}
