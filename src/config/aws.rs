//! What the AWS SDK is to be told, and the one call that configuration itself makes: reading `AWS_SECRET_NAME`.

use std::{collections::BTreeMap, time::Duration};

use aws_config::{BehaviorVersion, Region, SdkConfig, timeout::TimeoutConfig};
use aws_sdk_secretsmanager::{
    Client,
    config::Credentials,
    error::{ProvideErrorMetadata, SdkError},
};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, rustls_provider::CryptoMode},
};

use super::{
    contracts::{Registry, SinkTarget},
    endpoints,
    layers::Layers,
    problem::Problem,
    reader::Reader,
    secret::Secret,
};

/// All tries of reading the secret together.
const SECRET_TIMEOUT: Duration = Duration::from_secs(15);
/// One try of any AWS call that sets no timeout of its own.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// What was said about AWS; whatever is absent the SDK finds by itself (profile, container, instance role).
#[derive(Clone, Debug, Default)]
pub struct AwsSettings {
    /// `AWS_REGION`, else the region in the queue's URL.
    pub region: Option<String>,
    /// `AWS_ENDPOINT_URL`: every service.
    pub endpoint: Option<String>,
    /// `AWS_ENDPOINT_URL_SQS`, else `AWS_ENDPOINT_URL`.
    pub sqs_endpoint: Option<String>,
    /// `AWS_ENDPOINT_URL_SECRETS_MANAGER`, else `AWS_ENDPOINT_URL`.
    pub secrets_endpoint: Option<String>,
    /// Keys, where they were given.
    pub credentials: Option<AwsCredentials>,
}

/// Keys that were given.
#[derive(Clone, Debug)]
pub struct AwsCredentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub id: Secret,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub key: Secret,
    /// `AWS_SESSION_TOKEN`.
    pub token: Option<Secret>,
}

impl AwsSettings {
    /// Reads the variables of the AWS SDK.
    pub(super) fn read(layers: &Layers, problems: &mut Vec<Problem>) -> Self {
        let mut reader = Reader { layers, problems };
        let endpoint = reader.read("AWS_ENDPOINT_URL", endpoints::aws_endpoint);
        let sqs_endpoint = reader.read("AWS_ENDPOINT_URL_SQS", endpoints::aws_endpoint);
        let secrets_endpoint = reader.read("AWS_ENDPOINT_URL_SECRETS_MANAGER", endpoints::aws_endpoint);
        let secret = |name| layers.get(name).map(|given| Secret::new(given.value.trim()));
        let credentials = match (secret("AWS_ACCESS_KEY_ID"), secret("AWS_SECRET_ACCESS_KEY")) {
            (Some(id), Some(key)) => Some(AwsCredentials { id, key, token: secret("AWS_SESSION_TOKEN") }),
            (None, None) => None,
            (Some(_), None) => {
                reader.report("AWS_ACCESS_KEY_ID", "is set without AWS_SECRET_ACCESS_KEY", "set both or neither");
                None
            }
            (None, Some(_)) => {
                reader.report("AWS_SECRET_ACCESS_KEY", "is set without AWS_ACCESS_KEY_ID", "set both or neither");
                None
            }
        };
        Self {
            region: reader.text("AWS_REGION"),
            sqs_endpoint: sqs_endpoint.or_else(|| endpoint.clone()),
            secrets_endpoint: secrets_endpoint.or_else(|| endpoint.clone()),
            endpoint,
            credentials,
        }
    }

    /// A queue is reached only in its own region: where no region is given the queue's is taken, and another is warned of.
    pub(super) fn fit_region(&mut self, registry: &Registry, warnings: &mut Vec<String>) {
        let queues = registry.listeners().iter().filter_map(|listener| match &listener.target {
            SinkTarget::Sqs { url } => endpoints::queue_region(url).map(|region| (region, listener)),
            SinkTarget::Stdout => None,
        });
        for (region, listener) in queues {
            match &self.region {
                None => self.region = Some(region),
                Some(given) if *given == region => {}
                Some(given) => {
                    let text =
                        format!("{} is in {region}, but AWS_REGION is {given}: it will not be found", listener.target);
                    if !warnings.contains(&text) {
                        warnings.push(text);
                    }
                }
            }
        }
    }
}

/// The SDK's configuration for every AWS client of the process: ring for TLS, and time limits. A client of SQS sets
/// [`AwsSettings::sqs_endpoint`] on top, because an endpoint of this configuration would hide it.
pub async fn sdk_config(aws: &AwsSettings) -> SdkConfig {
    crate::crypto::init();
    let http = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(5))
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http).timeout_config(timeouts);
    if let Some(region) = &aws.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(endpoint) = &aws.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(AwsCredentials { id, key, token }) = &aws.credentials {
        let token = token.as_ref().map(|token| token.expose().to_owned());
        loader = loader.credentials_provider(Credentials::new(id.expose(), key.expose(), token, None, "configuration"));
    }
    loader.load().await
}

/// The variables in a secret. An error says what went wrong and holds nothing of the secret.
pub(super) async fn fetch_secret(aws: &AwsSettings, name: &str) -> Result<BTreeMap<String, String>, String> {
    let fetch = async {
        let mut config = aws_sdk_secretsmanager::config::Builder::from(&sdk_config(aws).await);
        if let Some(endpoint) = &aws.secrets_endpoint {
            config = config.endpoint_url(endpoint);
        }
        Client::from_conf(config.build()).get_secret_value().secret_id(name).send().await
    };
    let answer = tokio::time::timeout(SECRET_TIMEOUT, fetch)
        .await
        .map_err(|_| format!("Secrets Manager did not answer within {} s", SECRET_TIMEOUT.as_secs()))?
        .map_err(|error| describe(&error))?;
    let text = answer.secret_string().ok_or("the secret is binary, not a JSON object")?;
    parse_secret(text)
}

fn describe<E, R>(error: &SdkError<E, R>) -> String
where
    E: ProvideErrorMetadata,
    SdkError<E, R>: std::error::Error,
{
    match error {
        SdkError::ServiceError(service) => {
            let (code, message) = (service.err().code(), service.err().message());
            format!("Secrets Manager refused: {} {}", code.unwrap_or("unknown"), message.unwrap_or_default())
        }
        SdkError::TimeoutError(_) => "Secrets Manager did not answer in time".to_owned(),
        other => {
            let cause = std::error::Error::source(other).map(ToString::to_string).unwrap_or_default();
            format!("Secrets Manager cannot be asked: {other} ({cause})")
        }
    }
}

/// The members of a JSON object as the environment would spell them.
fn parse_secret(text: &str) -> Result<BTreeMap<String, String>, String> {
    // The parser's message would quote what it found.
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).map_err(|error| {
        format!("the secret is not a JSON object (line {}, column {})", error.line(), error.column())
    })?;
    let mut values = BTreeMap::new();
    for (name, value) in object {
        let value = match value {
            serde_json::Value::String(text) => text,
            serde_json::Value::Number(number) => number.to_string(),
            serde_json::Value::Bool(flag) => flag.to_string(),
            serde_json::Value::Null => continue,
            _ => return Err(format!("'{name}' in the secret must be a string, a number, true or false")),
        };
        values.insert(name, value);
    }
    Ok(values)
}
