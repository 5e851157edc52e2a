//! SecantusDB: MongoDB's wire protocol on a real storage engine, a replica set of one, with change streams.

use std::{path::PathBuf, time::Duration};

use chaintap::config::SecretUrl;
use mongodb::{
    Client, Collection,
    bson::{Document, doc},
};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use super::process::{dev_dir, eventually, free_port, spawn};

/// A running server; killed and its data deleted when dropped.
pub struct Mongo {
    child: Child,
    port: u16,
    data: TempDir,
    flags: &'static [&'static str],
}

impl Mongo {
    /// Starts an empty server and waits until it answers.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with flags of `secantusd-py`.
    pub async fn start_with(flags: &'static [&'static str]) -> Self {
        let (port, data) = (free_port(), tempfile::tempdir().unwrap());
        let mut server = Self { child: spawn(&mut command(port, &data, flags)), port, data, flags };
        server.answers().await;
        server
    }

    /// As `MONGODB_URI`.
    pub fn uri(&self) -> String {
        uri_of(self.port)
    }

    /// As the settings hold it.
    pub fn secret_uri(&self) -> SecretUrl {
        SecretUrl::parse(&self.uri()).unwrap()
    }

    /// The `tokens` collection of a database, as another program sees it.
    pub async fn tokens(&self, database: &str) -> Collection<Document> {
        Client::with_uri_str(self.uri()).await.unwrap().database(database).collection("tokens")
    }

    /// As if the machine lost power.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Starts it again, on the same port and with the data that it had.
    pub async fn restart(&mut self) {
        self.child = spawn(&mut command(self.port, &self.data, self.flags));
        self.answers().await;
    }

    /// The same with other flags.
    pub async fn restart_with(&mut self, flags: &'static [&'static str]) {
        self.flags = flags;
        self.restart().await;
    }

    async fn answers(&mut self) {
        let client = Client::with_uri_str(self.uri()).await.unwrap();
        eventually("SecantusDB answers", Duration::from_secs(30), || async {
            let admin = client.database("admin");
            let ping = admin.run_command(doc! { "ping": 1 });
            matches!(timeout(Duration::from_secs(3), ping.into_future()).await, Ok(Ok(_)))
        })
        .await;
        // Nobody else's server on the port: ours would have failed to bind.
        assert!(self.child.try_wait().unwrap().is_none(), "SecantusDB ended");
        client.shutdown().immediate(true).await;
    }
}

/// The connection string of a port; `directConnection`, because the server calls itself a replica set.
pub fn uri_of(port: u16) -> String {
    format!("mongodb://127.0.0.1:{port}/?directConnection=true&serverSelectionTimeoutMS=3000")
}

fn command(port: u16, data: &TempDir, flags: &[&str]) -> Command {
    let program: PathBuf = dev_dir().join("venv/bin/secantusd-py");
    let mut command = Command::new(program);
    command.args(["--host", "127.0.0.1", "--log-level", "WARNING", "--sync-on-commit"]).args(flags);
    command.arg("--port").arg(port.to_string()).arg("--storage-path").arg(data.path());
    command
}
