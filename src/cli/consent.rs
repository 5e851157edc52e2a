//! Before a command changes anything it says what it will do, and goes on only if it is told to: by `--yes`, or by an
//! answer at a terminal.

use std::io::{BufRead, IsTerminal as _, Write};

use clap::Args;

use super::{Failure, equip::say};

/// Flags of every command that changes the state.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(super) struct Consent {
    /// Only say what would be done
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do it without asking, for scripts
    #[arg(long)]
    yes: bool,
}

impl Consent {
    /// Whether to go on; `false` after a dry run, which is all that was asked for.
    ///
    /// # Errors
    ///
    /// [`Failure::No`] where the answer was no, [`Failure::Usage`] where there is nobody to ask: a script must not take that
    /// for done.
    pub(super) fn given(self, out: &mut (dyn Write + Send)) -> Result<bool, Failure> {
        let (input, output) = (std::io::stdin(), std::io::stderr());
        let at_terminal = input.is_terminal() && output.is_terminal();
        let mut answers = input.lock();
        self.asked(at_terminal.then_some((&mut answers, &mut std::io::stderr())), out)
    }

    /// Asks at the terminal, where there is one.
    fn asked(
        self,
        terminal: Option<(&mut dyn BufRead, &mut dyn Write)>,
        out: &mut (dyn Write + Send),
    ) -> Result<bool, Failure> {
        let untold = |error: std::io::Error| Failure::Internal(format!("cannot ask: {error}"));
        match (self, terminal) {
            (Self { dry_run: true, .. }, _) => {
                say(out, "nothing was changed: a dry run")?;
                Ok(false)
            }
            (Self { yes: true, .. }, _) => Ok(true),
            (_, Some((answers, questions))) => {
                write!(questions, "go on? [y/N] ").and_then(|()| questions.flush()).map_err(untold)?;
                let mut answer = String::new();
                answers.read_line(&mut answer).map_err(untold)?;
                match answer.trim().to_ascii_lowercase().as_str() {
                    "y" | "yes" => Ok(true),
                    _ => Err(Failure::No("nothing was changed".into())),
                }
            }
            (_, None) => {
                say(out, "nothing was changed; say --yes to do it")?;
                Err(Failure::Usage("there is no terminal to ask at: --yes does it, --dry-run only says it".into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(consent: Consent, answer: Option<&str>) -> (Result<bool, Failure>, String, String) {
        let (mut questions, mut out) = (Vec::new(), Vec::new());
        let mut answers = answer.unwrap_or_default().as_bytes();
        let terminal = answer.map(|_| (&mut answers as &mut dyn BufRead, &mut questions as &mut dyn Write));
        let given = consent.asked(terminal, &mut out);
        (given, String::from_utf8(questions).unwrap(), String::from_utf8(out).unwrap())
    }

    #[test]
    fn only_a_yes_is_one() {
        let none = Consent::default();
        for answer in ["y\n", "Y\n", "yes\n", " YES \n"] {
            assert!(asked(none, Some(answer)).0.unwrap(), "{answer:?}");
        }
        for answer in ["", "\n", "n\n", "no\n", "yess\n", "si\n"] {
            let (given, questions, out) = asked(none, Some(answer));
            assert!(matches!(given, Err(Failure::No(said)) if said == "nothing was changed"), "{answer:?}");
            assert_eq!((questions.as_str(), out.as_str()), ("go on? [y/N] ", ""));
        }
    }

    #[test]
    fn a_script_says_yes_beforehand_and_a_dry_run_asks_nobody() {
        let (yes, dry_run) = (Consent { yes: true, dry_run: false }, Consent { yes: false, dry_run: true });
        for answer in [None, Some("n\n")] {
            let (given, questions, out) = asked(yes, answer);
            assert!(given.unwrap() && questions.is_empty() && out.is_empty(), "{questions}{out}");
        }
        for answer in [None, Some("y\n")] {
            let (given, questions, out) = asked(dry_run, answer);
            assert!(!given.unwrap() && questions.is_empty() && out.contains("nothing was changed"), "{out}");
        }
        let (given, _, out) = asked(Consent::default(), None);
        assert!(matches!(given, Err(Failure::Usage(_))) && out.contains("--yes"), "{out}");
    }
}
