//! The scripts as they are sent: each is the prelude `_lib.lua` and one operation.

use redis::{Cmd, Script, cmd};

/// One operation's script.
#[derive(Debug)]
pub(super) struct Lua {
    code: &'static str,
    sha: String,
}

impl Lua {
    fn new(code: &'static str) -> Self {
        Self { code, sha: Script::new(code).get_hash().to_owned() }
    }

    /// EVALSHA: the usual call, without the text.
    pub(super) fn by_hash(&self, keys: &[String], args: &[Vec<u8>]) -> Cmd {
        Self::call("EVALSHA", &self.sha, keys, args)
    }

    /// EVAL: the call after NOSCRIPT; it also loads the script.
    pub(super) fn by_text(&self, keys: &[String], args: &[Vec<u8>]) -> Cmd {
        Self::call("EVAL", self.code, keys, args)
    }

    fn call(verb: &str, script: &str, keys: &[String], args: &[Vec<u8>]) -> Cmd {
        let mut command = cmd(verb);
        command.arg(script).arg(keys.len()).arg(keys).arg(args);
        command
    }
}

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Every script, by the name of its file.
        #[derive(Debug)]
        pub(super) struct Scripts {
            $(pub(super) $name: Lua,)+
        }

        impl Scripts {
            pub(super) fn new() -> Self {
                Self { $($name: Lua::new(concat!(
                    include_str!("../scripts/_lib.lua"),
                    include_str!(concat!("../scripts/", stringify!($name), ".lua")),
                )),)+ }
            }
        }
    };
}

scripts!(
    init,
    snapshot,
    claim,
    renew,
    release,
    heartbeat,
    retire,
    intent,
    journaled,
    journal,
    commit,
    commit_final,
    seal,
    orphans,
    rewind,
    retracted,
    amend,
    resume,
    replay,
    skip,
    published,
    publish,
    duty,
    scanned,
    wipe,
    bury,
    dead_letters,
    exhume,
);
