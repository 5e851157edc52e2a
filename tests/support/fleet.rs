//! The replicas of one listener: killed, stopped, started again; what they wrote, and how much memory they took.

use std::{
    fs::{File, create_dir_all},
    io::Write as _,
    path::PathBuf,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    chaintap::{Listener, Settings},
    mailbox::Mailbox,
};

/// How far the memory of a process may grow over a run: by this share of what it took at first, and a little.
const GROWTH: (u64, u64) = (130, 100);
const GROWTH_BYTES: u64 = 16 << 20;
/// What a process takes while it starts says nothing.
const STARTED: Duration = Duration::from_secs(3);
/// With fewer samples nothing is said of growth.
const SAMPLES: usize = 90;

/// One replica, running, stopped or down.
struct Replica {
    settings: Settings,
    listener: Option<Listener>,
    is_stopped: bool,
    log: File,
    /// Resident bytes, sampled over all its lives.
    memory: Vec<u64>,
    next_sample: Instant,
    started: Instant,
    /// Whether messages are on its standard output.
    writes: bool,
}

impl Replica {
    fn start(settings: Settings, log: File, writes: bool) -> Self {
        let listener = Some(settings.start());
        let (memory, now) = (Vec::new(), Instant::now());
        Self { settings, listener, is_stopped: false, log, memory, next_sample: now, started: now, writes }
    }

    fn restart(&mut self) {
        self.listener = Some(self.settings.start());
        self.started = Instant::now();
    }

    /// Takes what it wrote.
    fn harvest(&mut self, fold: &mut Mailbox) {
        let Some(listener) = &self.listener else { return };
        write_all(&mut self.log, &listener.take_log());
        if self.writes {
            enter_all(fold, &listener.take_lines());
        }
    }

    async fn kill(&mut self, fold: &mut Mailbox) {
        self.harvest(fold);
        let Some(mut listener) = self.listener.take() else { return };
        let rest = listener.kill().await;
        if self.writes {
            enter_all(fold, &rest);
        }
        write_all(&mut self.log, &listener.take_log());
        write_all(&mut self.log, &["---- killed".to_owned()]);
        self.is_stopped = false;
    }

    fn sample(&mut self) {
        if Instant::now() < self.next_sample || self.is_stopped || self.started.elapsed() < STARTED {
            return;
        }
        self.next_sample = Instant::now() + Duration::from_secs(1);
        if let Some(listener) = &self.listener {
            self.memory.push(listener.resident_bytes());
        }
    }
}

/// All replicas of one listener.
pub struct Fleet {
    replicas: Vec<Replica>,
    pub directory: PathBuf,
    /// Exit codes of replicas that ended unasked.
    pub ended: Vec<i32>,
}

impl Fleet {
    /// Starts so many. Their logs go to a directory of this name.
    pub fn start(settings: &Settings, count: usize, name: &str, writes: bool) -> Self {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("black-box").join(name);
        create_dir_all(&directory).unwrap();
        let log = |index: usize| File::create(directory.join(format!("replica-{index}.log"))).unwrap();
        let replicas = (0..count).map(|index| Replica::start(settings.clone(), log(index), writes)).collect();
        Self { replicas, directory, ended: Vec::new() }
    }

    pub fn count(&self) -> usize {
        self.replicas.len()
    }

    /// Takes what they wrote, samples their memory, and starts again what ended by itself, as an orchestrator does.
    pub async fn tend(&mut self, fold: &mut Mailbox) {
        for replica in &mut self.replicas {
            replica.harvest(fold);
            let has_ended = replica.listener.as_mut().is_some_and(|listener| !listener.lives());
            if has_ended {
                let code = replica.listener.as_mut().unwrap().ended(Duration::from_secs(5)).await;
                replica.harvest(fold);
                write_all(&mut replica.log, &[format!("---- ended with {code}")]);
                self.ended.push(code);
                replica.restart();
            } else {
                replica.sample();
            }
        }
    }

    /// Kills one, running or stopped; `false` where it is down already.
    pub async fn kill(&mut self, index: usize, fold: &mut Mailbox) -> bool {
        let was_up = self.replicas[index].listener.is_some();
        self.replicas[index].kill(fold).await;
        was_up
    }

    /// Starts one that is down.
    pub fn revive(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        if replica.listener.is_none() {
            replica.restart();
        }
    }

    /// Stops one in its tracks; `false` where it is down or stopped already.
    pub async fn stop(&mut self, index: usize) -> bool {
        let replica = &mut self.replicas[index];
        let Some(listener) = replica.listener.as_ref().filter(|_| !replica.is_stopped) else { return false };
        listener.signal("STOP").await;
        replica.is_stopped = true;
        true
    }

    /// Lets one go on that was stopped.
    pub async fn resume(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        if let Some(listener) = replica.listener.as_ref().filter(|_| replica.is_stopped) {
            listener.signal("CONT").await;
        }
        replica.is_stopped = false;
    }

    /// Every replica runs.
    pub async fn restore(&mut self) {
        for index in 0..self.count() {
            self.resume(index).await;
            self.revive(index);
        }
    }

    /// What each of them says of itself.
    pub async fn told(&self) -> Vec<String> {
        let mut all = Vec::new();
        for listener in self.replicas.iter().filter_map(|replica| replica.listener.as_ref()) {
            all.push(listener.get("/health").await.map_or("nothing".to_owned(), |(_, body)| body));
        }
        all
    }

    /// The watermark that each of them tells.
    pub async fn watermarks(&self) -> Vec<i64> {
        let mut all = Vec::new();
        for listener in self.replicas.iter().filter_map(|replica| replica.listener.as_ref()) {
            let health = listener.get("/health").await.and_then(|(_, body)| serde_json::from_str(&body).ok());
            let health: serde_json::Value = health.unwrap_or_default();
            all.push(health["watermark"].as_i64().unwrap_or(-1));
        }
        all
    }

    /// Asks all of them to stop, and takes the last of what they wrote.
    pub async fn end(&mut self, fold: &mut Mailbox) {
        for replica in &mut self.replicas {
            let Some(mut listener) = replica.listener.take() else { continue };
            listener.signal("TERM").await;
            let code = listener.ended(Duration::from_secs(30)).await;
            replica.listener = Some(listener);
            replica.harvest(fold);
            let listener = replica.listener.take().unwrap();
            assert_eq!(code, 0, "{}", listener.log());
        }
    }

    /// Memory of each replica over the run, in words; the ones that grew too much.
    pub fn memory(&self) -> (String, Vec<String>) {
        let mib = |bytes: u64| bytes >> 20;
        let (mut words, mut grown) = (Vec::new(), Vec::new());
        for (index, replica) in self.replicas.iter().enumerate() {
            let samples = &replica.memory;
            let Some((least, middle, most)) = spread(samples) else { continue };
            words.push(format!("{}/{}/{} MiB", mib(least), mib(middle), mib(most)));
            let third = samples.len() / 3;
            let medians = [&samples[..third], &samples[samples.len() - third..]].map(spread);
            let [Some((_, begin, _)), Some((_, end, _))] = medians else { continue };
            if samples.len() >= SAMPLES && end > begin * GROWTH.0 / GROWTH.1 + GROWTH_BYTES {
                grown.push(format!("replica {index}: from {} to {} MiB", mib(begin), mib(end)));
            }
        }
        (words.join(", "), grown)
    }
}

fn enter_all(fold: &mut Mailbox, messages: &[String]) {
    for message in messages {
        fold.enter(message);
    }
}

fn write_all(log: &mut File, lines: &[String]) {
    for line in lines {
        writeln!(log, "{line}").unwrap();
    }
}

/// Least, median and most.
fn spread(samples: &[u64]) -> Option<(u64, u64, u64)> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    Some((*sorted.first()?, *sorted.get(sorted.len() / 2)?, *sorted.last()?))
}
