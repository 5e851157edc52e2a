//! `chaintap healthcheck`: asks a running process whether it is alive, for containers without a shell.
//!
//! Reads nothing but its flags and two variables of the environment: a probe must not depend on a configuration file.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use clap::Args;
use reqwest::{Client, Response, redirect};

use super::Failure;

/// Longest answer that is read and shown, bytes.
const MAX_ANSWER: usize = 4 << 10;

/// Flags of `healthcheck`.
#[derive(Args, Debug)]
pub struct HealthcheckArgs {
    /// Ask whether it is ready, not only alive
    #[arg(long)]
    ready: bool,
    /// Ask this address instead of this machine's PORT
    #[arg(long, value_name = "URL", conflicts_with = "ready")]
    url: Option<String>,
    /// Port of the process to ask
    #[arg(long, env = "PORT", default_value_t = 3001)]
    port: u16,
    /// Address that the process listens on
    #[arg(long, env = "HTTP_BIND", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    bind: IpAddr,
    /// Seconds to wait for the answer
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
}

impl HealthcheckArgs {
    fn address(&self) -> String {
        let path = if self.ready { "readyz" } else { "livez" };
        let host = match self.bind {
            // Listening everywhere includes here.
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
            other => other,
        };
        self.url.clone().unwrap_or_else(|| format!("http://{}/{path}", SocketAddr::new(host, self.port)))
    }
}

/// Asks once.
///
/// # Errors
///
/// [`Failure::No`] (exit code 1, all that container engines know) where the answer is no, or there is none.
pub async fn run(args: &HealthcheckArgs) -> Result<(), Failure> {
    crate::crypto::init();
    // A proxy in the environment is for the world, not for this machine.
    let client = Client::builder().no_proxy().redirect(redirect::Policy::none());
    let client = client.timeout(Duration::from_secs(args.timeout)).build().map_err(no_answer)?;
    let answer = client.get(args.address()).send().await.map_err(no_answer)?;
    if answer.status().is_success() {
        return Ok(());
    }
    let code = answer.status().as_u16();
    Err(Failure::No(format!("{code}: {}", beginning(answer).await.trim_end())))
}

fn no_answer(error: reqwest::Error) -> Failure {
    let mut sentence = "no answer".to_owned();
    let error = error.without_url();
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = cause {
        sentence = format!("{sentence}: {error}");
        cause = error.source();
    }
    Failure::No(sentence)
}

async fn beginning(mut answer: Response) -> String {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        bytes.extend(chunk.iter().take(MAX_ANSWER - bytes.len()));
        if bytes.len() == MAX_ANSWER {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
