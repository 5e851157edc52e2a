//! The command line: commands, flags, exit codes. Data goes to standard output, everything else to standard error.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, error::ErrorKind};

use crate::config::{self, Purpose, Settings, Sources};

mod audit;
pub mod check;
mod consent;
pub mod devchain;
pub mod dlq;
mod equip;
pub mod healthcheck;
mod mend;
mod operate;
mod providers;
mod run;
pub mod status;
pub mod tokens;

pub use crate::failure::Failure;

/// Listens to an EVM chain and hands every tracked token transfer to a queue, at least once
#[derive(Debug, Parser)]
#[command(name = "chaintap", version, after_help = AFTER_HELP, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What a person who has just met the program asks next.
const AFTER_HELP: &str = "\
To see it work, without any configuration: chaintap run --demo

Settings come from the environment, .env and config/*.toml; `chaintap check` says whether they are right.
Commands that read them take the most common ones as flags, too: `chaintap run --help`.

Exit codes (sysexits): 0 done · 1 the answer is no · 64 usage · 65 bad input · 69 a server is unavailable ·
70 internal fault · 75 try again later · 78 configuration";

#[derive(Debug, Subcommand)]
enum Command {
    /// Listen to the chain and deliver
    Run(Configured<run::RunArgs>),
    /// Say whether the configuration is right, and with --connect whether every server answers
    Check(Configured<check::CheckArgs>),
    /// Say how good the nodes are; exit code 1 where one cannot be used or is suspicious
    Providers(Configured<OneOf<providers::ProvidersCommand>>),
    /// Show what is listened to, and where it goes
    Contracts(Configured<check::ContractsArgs>),
    /// Print the first topic of an event: 'Transfer(address,address,uint256)'
    Topic(check::TopicArgs),
    /// Show where the listener stands, from the state store
    Status(Configured<status::StatusArgs>),
    /// List and change the tokens whose transfers are delivered
    Tokens(Configured<OneOf<tokens::TokensCommand>>),
    /// List, send again and drop what could not be delivered
    Dlq(Configured<OneOf<dlq::DlqCommand>>),
    /// Read blocks A to B again, and say what of them was delivered, what was not and why; exit code 1 on a difference
    Audit(Configured<audit::AuditArgs>),
    /// Deliver blocks A to B again, with the same ids and higher versions
    Replay(Configured<mend::ReplayArgs>),
    /// Deliver everything after block N again, with the same ids and higher versions
    Rewind(Configured<mend::RewindArgs>),
    /// Knowingly leave out every block up to N that is not delivered yet
    Skip(Configured<mend::SkipArgs>),
    /// Go on after blocks that were final left the chain
    Resume(Configured<mend::ResumeArgs>),
    /// Take back what may still leave the chain, then forget everything of it
    Reset(Configured<mend::ResetArgs>),
    /// Serve a simulated EVM node
    Devchain(devchain::Args),
    /// Ask a running process on this machine whether it is alive
    Healthcheck(healthcheck::HealthcheckArgs),
}

/// A command that reads the configuration, with the flags that stand above it.
#[derive(Debug, clap::Args)]
struct Configured<A: clap::Args> {
    #[command(flatten)]
    own: A,
    #[command(flatten)]
    overrides: Overrides,
}

/// One of several commands of a kind.
#[derive(Debug, clap::Args)]
struct OneOf<C: Subcommand> {
    #[command(subcommand)]
    command: C,
}

/// Flags that stand above the environment.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Settings (each stands above its environment variable)")]
struct Overrides {
    /// Directory of default.toml, chains.toml and contracts.toml [default: ./config, else built in]
    #[arg(long, global = true, value_name = "DIR")]
    config: Option<PathBuf>,
    /// Chain to listen to
    #[arg(long, global = true, value_name = "ID")]
    chain_id: Option<String>,
    /// Where an empty store begins: a block number or "latest"
    #[arg(long, global = true, value_name = "BLOCK")]
    start_block: Option<String>,
    /// Which blocks are delivered: instant, safe, finalized or a depth
    #[arg(long, global = true, value_name = "MODE")]
    deliver: Option<String>,
    /// Directory of the embedded store
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<String>,
    /// What is logged: error, warn, info, debug, trace, or directives
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl Overrides {
    /// Where settings come from for `purpose`.
    fn sources(&self, purpose: Purpose) -> Sources {
        let flags = [
            ("CHAIN_ID", &self.chain_id),
            ("START_BLOCK", &self.start_block),
            ("DELIVER", &self.deliver),
            ("DATA_DIR", &self.data_dir),
            ("LOG_LEVEL", &self.log_level),
        ];
        let flags: BTreeMap<&'static str, String> =
            flags.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect();
        Sources { config_dir: self.config.clone(), flags, purpose, ..Sources::of_process() }
    }

    /// The settings of a command that looks at a deployment or changes it.
    async fn settings(&self) -> Result<Settings, Failure> {
        Ok(config::load(&self.sources(Purpose::Operate)).await?)
    }
}

/// Does what the command line says; the exit code tells how it went.
#[must_use]
pub fn main() -> ExitCode {
    crate::crypto::init();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure.to_string());
            failure.code()
        }
    }
}

/// Help and version are no mistakes; anything else is one of usage.
fn refuse(error: &clap::Error) -> ExitCode {
    // Where the terminal is gone there is nobody to tell.
    drop(error.print());
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => Failure::Usage(String::new()).code(),
    }
}

#[expect(clippy::print_stderr, reason = "the one place that tells a person why a command failed")]
fn complain(text: &str) {
    eprintln!("chaintap: {}", crate::telemetry::scrub(text));
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Run(Configured { own, overrides }) => run::run(&own, &overrides),
        Command::Topic(args) => check::topic(&args, &mut std::io::stdout()),
        other => run::runtime()?.block_on(operate::operate(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rewind_may_go_to_before_block_0_and_no_further() {
        let parse = |command: &str, to: &str| Cli::try_parse_from(["chaintap", command, "--to", to]);
        for to in ["-1", "0", "18500000"] {
            assert!(parse("rewind", to).is_ok(), "{to}");
        }
        assert!(parse("rewind", "-2").is_err());
        assert!(parse("skip", "-1").is_err());
    }
}
