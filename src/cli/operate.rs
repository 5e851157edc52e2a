//! The commands that look at a deployment or change it, without listening.

use std::{io::Write, sync::Arc};

use clap::Args;

use super::{Command, Failure, Overrides, check, devchain, dlq, healthcheck, run::logs, status, tokens};
use crate::{
    app,
    config::{self, Purpose, Settings},
    store::{ReplayReply, StateStore},
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
pub(super) async fn operate(command: Command, overrides: &Overrides) -> Result<(), Failure> {
    let out = &mut std::io::stdout();
    match command {
        Command::Devchain(args) => {
            let _logs = logs("info", None)?;
            return devchain::run(args).await;
        }
        Command::Healthcheck(args) => return healthcheck::run(&args).await,
        Command::Check(args) => return check(&args, overrides, out).await,
        _ => {}
    }
    let _logs = logs("warn", None)?;
    let sources = overrides.sources(Purpose::Operate);
    let settings = config::load(&sources).await?;
    match command {
        Command::Contracts(args) => check::contracts(&args, &settings, out),
        Command::Status(args) => status::run(&args, settings.chain.id, app::open_store(&settings).await, out).await,
        Command::Tokens(command) => {
            tokens::run(&command, &settings.tokens, settings.chain.id, out, &mut std::io::stderr()).await
        }
        Command::Dlq(command) => dead_letters(&command, &settings).await,
        Command::Rewind(args) => rewind(&args, &settings, out).await,
        Command::Skip(args) => skip(&args, &settings, out).await,
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
async fn dead_letters(command: &dlq::DlqCommand, settings: &Settings) -> Result<(), Failure> {
    let store = app::open_store(settings).await.map_err(|error| app::store_failure(&error))?;
    let sinks = app::sinks(settings).await?;
    dlq::run(command, &*store, &sinks, &mut std::io::stdout(), &mut std::io::stderr()).await
}

/// Sets the state back, so that blocks are delivered again.
async fn rewind(args: &RewindArgs, settings: &Settings, out: &mut impl Write) -> Result<(), Failure> {
    let (store, progress) = opened(settings).await?;
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
    finished(store.replay(to, progress.epoch).await.map_err(|error| app::store_failure(&error))?, out)
}

/// Marks blocks as done that were not delivered.
async fn skip(args: &SkipArgs, settings: &Settings, out: &mut impl Write) -> Result<(), Failure> {
    let (store, progress) = opened(settings).await?;
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

async fn opened(settings: &Settings) -> Result<(Arc<dyn StateStore>, crate::store::Progress), Failure> {
    let store = app::open_store(settings).await.map_err(|error| app::store_failure(&error))?;
    let snapshot = store.peek().await.map_err(|error| app::store_failure(&error))?;
    let nothing = || Failure::No("the store holds nothing of this chain yet: `chaintap run` begins it".into());
    let progress = snapshot.ok_or_else(nothing)?.progress;
    Ok((store, progress))
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
