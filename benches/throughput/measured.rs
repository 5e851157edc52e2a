//! Programs, run to their end and measured by the operating system: wall time, processor time, largest resident size.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use wait4::Wait4 as _;

use crate::chain::Truth;

/// What one run took.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// From its start to its end.
    pub wall: Duration,
    /// Of all its threads.
    pub cpu: Duration,
    /// Largest resident size, bytes. What starts programs must be small itself: a new one begins with the size of that.
    pub peak: u64,
    /// What it had to say: logs, lines or bytes.
    pub count: u64,
}

/// Runs a command to its end; `count` reads its standard output.
///
/// # Panics
///
/// Where it fails: a figure of a run that failed is no figure.
pub fn run(command: &mut Command, count: impl FnOnce(&mut dyn Read) -> u64) -> Run {
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let count = count(&mut child.stdout.take().unwrap());
    let used = child.wait4().unwrap();
    assert!(used.status.success(), "{command:?} failed: {}", used.status);
    Run { wall: begun.elapsed(), cpu: used.rusage.utime + used.rusage.stime, peak: used.rusage.maxrss, count }
}

/// Runs of one program, to be told as one figure.
#[derive(Clone, Debug, Default)]
pub struct Runs(pub Vec<Run>);

impl Runs {
    /// Median of the wall times, seconds.
    pub fn wall(&self) -> f64 {
        median(self.0.iter().map(|run| run.wall.as_secs_f64()))
    }

    /// Median of the processor times, seconds.
    pub fn cpu(&self) -> f64 {
        median(self.0.iter().map(|run| run.cpu.as_secs_f64()))
    }

    /// The largest of all, MiB.
    pub fn peak(&self) -> f64 {
        self.0.iter().map(|run| run.peak as f64 / 1_048_576.0).fold(0.0, f64::max)
    }

    /// Median of how much longer they took than others, each held against the one of its turn.
    pub fn times(&self, others: &Self) -> f64 {
        assert_eq!(self.0.len(), others.0.len(), "not of the same turns");
        let ratio = |(run, other): (&Run, &Run)| run.wall.as_secs_f64() / other.wall.as_secs_f64();
        median(self.0.iter().zip(&others.0).map(ratio))
    }

    /// So many of whatever they counted, a second.
    pub fn rate(&self) -> f64 {
        median(self.0.iter().map(|run| run.count as f64 / run.wall.as_secs_f64()))
    }
}

/// The middle one; of two in the middle the larger.
pub fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Counts lines, and reads no more of them than that.
pub fn lines(output: &mut dyn Read) -> u64 {
    let mut buffer = vec![0; 1 << 18];
    let mut lines = 0;
    loop {
        match output.read(&mut buffer).unwrap() {
            0 => return lines,
            // In parts whose count fits a byte, which the compiler counts many at a time.
            read => {
                let of =
                    |part: &[u8]| part.iter().fold(0_u8, |count, byte| count.wrapping_add(u8::from(*byte == b'\n')));
                lines += buffer[..read].chunks(255).map(|part| u64::from(of(part))).sum::<u64>();
            }
        }
    }
}

/// Reads messages and adds their ids to what was delivered; answers how many bytes they were.
pub fn ids(output: &mut dyn Read, delivered: &mut Truth) -> u64 {
    const BEFORE: &[u8] = br#","id":""#;
    let mut output = BufReader::with_capacity(1 << 18, output);
    let (mut line, mut bytes) = (Vec::new(), 0);
    while output.read_until(b'\n', &mut line).unwrap() > 0 {
        let begin = line.windows(BEFORE.len()).position(|part| part == BEFORE).unwrap() + BEFORE.len();
        let id = line[begin..].split(|byte| *byte == b'"').next().unwrap();
        delivered.add(id);
        bytes += line.len() as u64;
        line.clear();
    }
    bytes
}

/// The number that it prints.
pub fn number(output: &mut dyn Read) -> u64 {
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    text.trim().parse().unwrap()
}

/// A server that says in its first line where it is; ended with this value.
pub struct Server {
    child: Child,
    says: BufReader<ChildStdout>,
    /// Where it is.
    pub address: String,
}

impl Server {
    /// Starts another role of this program.
    pub fn start(arguments: &[&str]) -> Self {
        let mut child = this().args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let says = BufReader::new(child.stdout.take().unwrap());
        let mut server = Self { child, says, address: String::new() };
        server.address = server.line();
        server
    }

    /// The line with which it answers this line.
    pub fn ask(&mut self, question: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{question}").unwrap();
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "a server ended");
        line.trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// This program, to be run in another role.
pub fn this() -> Command {
    Command::new(std::env::current_exe().unwrap())
}

/// The listener, in this directory, with nothing of this process's environment.
pub fn listener(home: &Path, environment: &[(&str, String)]) -> Command {
    let mut command = Command::new(binary());
    command.env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
    command.current_dir(home);
    command
}

/// The listener's program: `CHAINTAP_BINARY`, which `make bench` builds as it is released, or the one beside this.
pub fn binary() -> std::path::PathBuf {
    std::env::var_os("CHAINTAP_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_chaintap").into()).into()
}
