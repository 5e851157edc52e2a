//! The commands that look at a deployment or change it, without listening.

use std::{io::Write, sync::Arc};

use clap::Args;

use super::{Command, Failure, Overrides, devchain, dlq, healthcheck, status, tokens};
use crate::{
    app,
    config::{self, Purpose, Settings},
    store::{ReplayReply, Snapshot, StateStore, StoreError},
    telemetry::logging,
};

/// Flags of `rewind` and `skip`.
#[derive(Debug, Args)]
pub(super) struct MoveArgs {
    /// The last block below which nothing changes (rewind), or the last one that is left out (skip)
    #[arg(long, value_name = "N")]
    to: u64,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Do it; without this it is only said
    #[arg(long)]
    yes: bool,
}

/// Does the commands that need settings or a server.
pub(super) async fn operate(command: Command, overrides: &Overrides) -> Result<(), Failure> {
    match command {
        Command::Devchain(args) => {
            logging::for_commands();
            return devchain::run(args).await;
        }
        Command::Healthcheck(args) => return healthcheck::run(&args).await,
        Command::Check(args) => return super::check::check(&args, overrides).await,
        _ => {}
    }
    let sources = overrides.sources(Purpose::Operate);
    let settings = config::load(&sources).await.map_err(|error| Failure::Config(error.to_string()))?;
    logging::for_commands();
    let out = &mut std::io::stdout();
    match command {
        Command::Contracts => super::check::contracts(&settings, out),
        Command::Status(args) => status::run(&args, settings.chain.id, app::open_store(&settings).await, out).await,
        Command::Tokens(command) => {
            tokens::run(&command, &settings.tokens, settings.chain.id, out, &mut std::io::stderr()).await
        }
        Command::Dlq(command) => dead_letters(&command, &settings, out).await,
        Command::Rewind(args) => move_progress(&args, &settings, Direction::Rewind, out).await,
        Command::Skip(args) => move_progress(&args, &settings, Direction::Skip, out).await,
        _ => Err(Failure::Internal("the command has no settings".into())),
    }
}
