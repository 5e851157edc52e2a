//! The commands that look at a deployment or change it, without listening.

use std::io::Write;

use super::{
    Command, Configured, Failure, Overrides, audit, check, devchain, dlq,
    equip::{self, opened, say},
    healthcheck, mend, providers,
    run::logs,
    status, tokens,
};
use crate::{
    app,
    config::{Purpose, Settings},
};

/// Does the commands that need a runtime.
pub(super) async fn operate(command: Command) -> Result<(), Failure> {
    let out = &mut std::io::stdout();
    match command {
        Command::Devchain(args) => {
            let _logs = logs("info", None)?;
            devchain::run(args).await
        }
        Command::Healthcheck(args) => healthcheck::run(&args).await,
        Command::Check(Configured { own, overrides }) => check(&own, &overrides, out).await,
        deployed => {
            let _logs = logs("warn", None)?;
            Box::pin(on_deployment(deployed, out)).await
        }
    }
}

/// Does the commands that look at a deployment or change it.
async fn on_deployment(command: Command, out: &mut std::io::Stdout) -> Result<(), Failure> {
    match command {
        Command::Contracts(Configured { own, overrides }) => check::contracts(&own, &overrides.settings().await?, out),
        Command::Status(Configured { own, overrides }) => {
            let settings = overrides.settings().await?;
            let chain = (settings.chain.id, app::bounds(&settings));
            status::run(&own, chain, opened(&settings).await?, out).await
        }
        Command::Tokens(Configured { own, overrides }) => {
            let settings = overrides.settings().await?;
            tokens::run(&own.command, &settings.tokens, settings.chain.id, out, &mut std::io::stderr()).await
        }
        Command::Dlq(Configured { own, overrides }) => {
            dead_letters(&own.command, &overrides.settings().await?, out).await
        }
        Command::Providers(Configured { own, overrides }) => {
            providers::run(&own.command, &overrides.settings().await?, out).await
        }
        Command::Audit(Configured { own, overrides }) => audit::run(&own, &overrides.settings().await?, out).await,
        Command::Replay(Configured { own, overrides }) => mend::replay(&own, &overrides.settings().await?, out).await,
        Command::Rewind(Configured { own, overrides }) => mend::rewind(&own, &overrides.settings().await?, out).await,
        Command::Skip(Configured { own, overrides }) => mend::skip(&own, &overrides.settings().await?, out).await,
        Command::Resume(Configured { own, overrides }) => mend::resume(&own, &overrides.settings().await?, out).await,
        Command::Reset(Configured { own, overrides }) => {
            mend::reset(&own, &overrides.settings().await?, &mut std::io::stderr()).await
        }
        _ => Err(Failure::Internal("not a command that operates on a deployment".into())),
    }
}

/// Checks the configuration, and where asked for every server that it names.
async fn check(args: &check::CheckArgs, overrides: &Overrides, out: &mut (impl Write + Send)) -> Result<(), Failure> {
    let settings = check::check(args, &overrides.sources(Purpose::Listen), out).await?;
    if !args.connect {
        return Ok(());
    }
    let _logs = logs("error", None)?;
    let mut failed = 0;
    for (server, outcome) in equip::reach(&settings).await {
        failed += usize::from(outcome.is_err());
        let (sign, text) = outcome.map_or_else(|reason| ("-", reason), |text| ("+", text));
        say(out, &format!("[{sign}] {server}: {text}"))?;
    }
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Unavailable(format!("servers that cannot be used: {failed}"))),
    }
}

/// Lists, sends again or drops what could not be delivered.
async fn dead_letters(
    command: &dlq::DlqCommand,
    settings: &Settings,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let (store, _) = opened(settings).await?;
    let sinks = app::sinks(settings).await?;
    let nodes = (!settings.providers.is_empty()).then(|| app::nodes(settings, &settings.providers));
    let edges = dlq::Edges { store: &*store, sinks: &sinks, source: nodes.as_deref() };
    dlq::run(command, edges, out, &mut std::io::stderr()).await
}
