//! The commands that look at a deployment or change it, without listening.

use std::{io::Write, sync::Arc};

use clap::Args;

use super::{Command, Configured, Failure, Overrides, check, devchain, dlq, healthcheck, run::logs, status, tokens};
use crate::{
    app,
    config::{Purpose, Settings},
    store::{ReplayReply, Snapshot, StateStore, StoreError},
};

/// Flags of `rewind`.
#[derive(Debug, Args)]
pub(super) struct RewindArgs {
    /// The last block that stays as it is; -1 delivers from block 0 on
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    to: i64,
    /// Do it; without this it is only said what would be done
    #[arg(long)]
    yes: bool,
}

/// Flags of `skip`.
#[derive(Debug, Args)]
pub(super) struct SkipArgs {
    /// The last block that is left out
    #[arg(long, value_name = "N")]
    to: u64,
    /// Do it; without this it is only said what would be done
    #[arg(long)]
    yes: bool,
}

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
            status::run(&own, settings.chain.id, opened(&settings).await?, out).await
        }
        Command::Tokens(Configured { own, overrides }) => {
            let settings = overrides.settings().await?;
            tokens::run(&own.command, &settings.tokens, settings.chain.id, out, &mut std::io::stderr()).await
        }
        Command::Dlq(Configured { own, overrides }) => {
            dead_letters(&own.command, &overrides.settings().await?, out).await
        }
        Command::Rewind(Configured { own, overrides }) => rewind(&own, &overrides.settings().await?, out).await,
        Command::Skip(Configured { own, overrides }) => skip(&own, &overrides.settings().await?, out).await,
        _ => Err(Failure::Internal("not a command that operates on a deployment".into())),
    }
}

/// Checks the configuration, and where asked for every server that it names.
async fn check(args: &check::CheckArgs, overrides: &Overrides, out: &mut impl Write) -> Result<(), Failure> {
    let settings = check::check(args, &overrides.sources(Purpose::Listen), out).await?;
    if !args.connect {
        return Ok(());
    }
    let _logs = logs("error", None)?;
    let mut failed = 0;
    for (server, outcome) in app::reach(&settings).await {
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
    dlq::run(command, &*store, &sinks, out, &mut std::io::stderr()).await
}

/// Sets the state back, so that blocks are delivered again.
async fn rewind(args: &RewindArgs, settings: &Settings, out: &mut impl Write) -> Result<(), Failure> {
    let (store, Snapshot { progress, .. }) = opened(settings).await?;
    let to = args.to;
    if to >= progress.tip {
        return Err(Failure::Data(format!("block {to} is not below the highest delivered block, {}", progress.tip)));
    }
    let begins = to + 1;
    say(
        out,
        &format!(
            "blocks {begins} to {} will be delivered again, with the same ids and higher versions (watermark {}, tip {})",
            progress.tip, progress.watermark, progress.tip
        ),
    )?;
    if !confirmed(args.yes, out)? {
        return Ok(());
    }
    finished(store.replay(to, None, progress.epoch).await.map_err(|error| app::store_failure(&error))?, out)
}

/// Marks blocks as done that were not delivered.
async fn skip(args: &SkipArgs, settings: &Settings, out: &mut impl Write) -> Result<(), Failure> {
    let (store, Snapshot { progress, .. }) = opened(settings).await?;
    if i64::try_from(args.to).unwrap_or(i64::MAX) <= progress.watermark {
        let watermark = progress.watermark;
        return Err(Failure::Data(format!("every block up to {} is delivered: the watermark is {watermark}", args.to)));
    }
    say(
        out,
        &format!(
            "blocks {} to {} that are not delivered yet will NEVER be delivered by this deployment",
            progress.watermark + 1,
            args.to
        ),
    )?;
    if !confirmed(args.yes, out)? {
        return Ok(());
    }
    finished(store.skip(args.to, progress.epoch).await.map_err(|error| app::store_failure(&error))?, out)
}

/// The store and what it holds of this chain.
async fn opened(settings: &Settings) -> Result<(Arc<dyn StateStore>, Snapshot), Failure> {
    let id = settings.chain.id;
    let nothing = || Failure::No(format!("the store holds nothing of chain {id} yet: `chaintap run` begins it"));
    let store = app::existing_store(settings).await.map_err(|error| match error {
        // Told without a scheme: what looks like a URL is cut to its host.
        StoreError::InUse(why) => {
            let port = settings.http.port();
            Failure::Temporary(format!("{why}\nif that is chaintap, it can be asked: curl localhost:{port}/health"))
        }
        other => app::store_failure(&other),
    })?;
    let store = store.ok_or_else(nothing)?;
    let snapshot = store.peek().await.map_err(|error| app::store_failure(&error))?.ok_or_else(nothing)?;
    Ok((store, snapshot))
}

fn confirmed(yes: bool, out: &mut impl Write) -> Result<bool, Failure> {
    if !yes {
        say(out, "nothing was changed; say --yes to do it")?;
    }
    Ok(yes)
}

fn finished(reply: ReplayReply, out: &mut impl Write) -> Result<(), Failure> {
    match reply {
        ReplayReply::Done(now) => say(out, &format!("done: watermark {}, tip {}", now.watermark, now.tip)),
        ReplayReply::Stale => Err(Failure::Temporary("the state changed meanwhile; look again and repeat".into())),
    }
}

fn say(out: &mut impl Write, line: &str) -> Result<(), Failure> {
    writeln!(out, "{line}").map_err(|error| Failure::Internal(format!("cannot write: {error}")))
}
