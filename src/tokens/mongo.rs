//! The `tokens` collection in MongoDB: read by the listener, written by `chaintap tokens`.
//!
//! Reading believes little and loses little: a document with a bad address or bad decimals is skipped and told with
//! its `_id`, everything else loads. `chainId` matches as a number of any BSON type and as a text of digits, because
//! old documents hold all of these; addresses compare by their 20 bytes. Where two documents have one address the
//! smaller `_id` counts, so that all replicas see the same list.
//!
//! Writing reads first and then writes by `_id`, so a document that somebody wrote in another case is updated instead
//! of doubled; the unique index on `{chainId, address}` stands behind that.
//!
//! The driver's types do not leave this file, the connection string does not leave the driver: errors name scheme and
//! host. Every round trip has the timeout given at the start.

use std::{collections::HashMap, future::IntoFuture, time::Duration};

use alloy::primitives::Address;
use async_trait::async_trait;
use futures_util::StreamExt;
use mongodb::{
    Client, Collection, IndexModel,
    bson::{Bson, DateTime, Document, deserialize_from_document, doc},
    change_stream::{ChangeStream, event::ChangeStreamEvent},
    error::{Error, ErrorKind, WriteFailure},
    options::{ClientOptions, IndexOptions},
};
use tokio::{
    sync::Mutex,
    time::{self, Instant},
};
use tracing::{debug, info};

use super::{
    Loaded, TokenDirectory, TokenError,
    row::{Gathering, MAX_ROWS, Row, parse_address, shown},
};
use crate::{backoff::Backoff, config::SecretUrl, domain::Token, telemetry::scrub};

const COLLECTION: &str = "tokens";
/// Documents in one reply, and in one insert.
const BATCH: usize = 1_000;
/// Connections at most; one is in use as a rule, one more waits for changes.
const MAX_CONNECTIONS: u32 = 4;
/// A change is told once nothing more has changed for this long, so that an import is one change.
const QUIET: Duration = Duration::from_millis(250);
/// Yet no later than this after the first.
const MAX_QUIET: Duration = Duration::from_secs(5);
/// A change stream that was silent for this long is opened anew: its connection may be dead.
const MAX_SILENCE: Duration = Duration::from_mins(10);
/// Pauses between attempts to open the change stream grow from this
const MIN_REOPEN: Duration = Duration::from_secs(1);
/// to this.
const MAX_REOPEN: Duration = Duration::from_mins(1);
/// Longest text of the driver or the server that is passed on, characters.
const MAX_FAULT: usize = 300;

/// The `tokens` collection, seen from one chain.
#[derive(Debug)]
pub struct MongoDirectory {
    client: Client,
    tokens: Collection<Document>,
    /// Scheme and host, for errors.
    place: String,
    chain_id: i64,
    timeout: Duration,
    watch: Mutex<Watch>,
}

/// What an import did, or would do: numbers of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Tokens that were not listed.
    pub added: usize,
    /// Tokens whose document said something else.
    pub updated: usize,
    /// Tokens whose document says the same.
    pub unchanged: usize,
}

impl MongoDirectory {
    /// Prepares the connection; `timeout` holds for each round trip. The server is first asked by the first call
    /// (`mongodb+srv` asks the DNS here), so one that is away now is no error.
    ///
    /// # Errors
    ///
    /// [`TokenError::Fatal`] where `uri` is no connection string, [`TokenError::Transient`] where the DNS does not
    /// answer.
    pub async fn connect(
        uri: &SecretUrl,
        database: &str,
        chain_id: u64,
        timeout: Duration,
    ) -> Result<Self, TokenError> {
        crate::crypto::init();
        let place = uri.to_string();
        let parsed = time::timeout(timeout, ClientOptions::parse(uri.expose())).await;
        let parsed = parsed.map_err(|_| TokenError::Transient(format!("{place}: the DNS gave no answer")))?;
        let mut options = parsed.map_err(|error| bad_uri(&place, &error))?;
        // A little less than the timeout around it, because the driver's error says more.
        options.server_selection_timeout = Some(timeout.mul_f32(0.9));
        options.connect_timeout = Some(timeout);
        options.max_pool_size = Some(MAX_CONNECTIONS);
        options.app_name.get_or_insert_with(|| env!("CARGO_PKG_NAME").to_owned());
        let client = Client::with_options(options).map_err(|error| bad_uri(&place, &error))?;
        let tokens = client.database(database).collection(COLLECTION);
        let chain_id = i64::try_from(chain_id).map_err(|_| TokenError::Fatal(format!("no chain has id {chain_id}")))?;
        Ok(Self { client, tokens, place, chain_id, timeout, watch: Mutex::default() })
    }

    /// Creates the unique index on `{chainId, address}` where it is not there.
    ///
    /// # Errors
    ///
    /// [`TokenError`]; fatal where documents stand against it.
    pub async fn ensure_index(&self) -> Result<(), TokenError> {
        let unique = IndexOptions::builder().unique(true).build();
        let index = IndexModel::builder().keys(doc! { "chainId": 1, "address": 1 }).options(unique).build();
        self.within(self.tokens.create_index(index)).await.map(|_| ())
    }

    /// Makes the collection hold these tokens, and leaves the others; where `dry_run`, only counts. Of two tokens with
    /// one address the later holds.
    ///
    /// # Errors
    ///
    /// [`TokenError`]; what was written before it stays, and the same import again completes it.
    pub async fn import(&self, tokens: &[Token], dry_run: bool) -> Result<Imported, TokenError> {
        let mut stored: HashMap<Address, (Bson, Row)> = HashMap::new();
        for (id, row) in self.documents().await? {
            if let Ok((address, row)) = row.and_then(|row| Ok((row.token()?.address, row))) {
                stored.entry(address).or_insert((id, row));
            }
        }
        let (mut added, mut updated, mut unchanged) = (Vec::new(), Vec::new(), 0);
        for token in tokens {
            match stored.get(&token.address) {
                None => added.push(token),
                Some((_, row)) if row.is_written_as(token) => unchanged += 1,
                Some((id, _)) => updated.push((id, token)),
            }
        }
        if !dry_run {
            for batch in added.chunks(BATCH) {
                self.insert(batch).await?;
            }
            for (id, token) in &updated {
                self.update(id, token).await?;
            }
        }
        Ok(Imported { added: added.len(), updated: updated.len(), unchanged })
    }

    /// Deletes every document of this chain with this address, in whatever case it is written; says how many.
    ///
    /// # Errors
    ///
    /// [`TokenError`] where the server does not answer or refuses.
    pub async fn remove(&self, address: &Address) -> Result<u64, TokenError> {
        let has_address =
            |row: &Row| row.address_text().is_some_and(|text| parse_address(text).as_ref() == Ok(address));
        let documents = self.documents().await?.into_iter();
        let ids: Vec<Bson> =
            documents.filter_map(|(id, row)| row.is_ok_and(|row| has_address(&row)).then_some(id)).collect();
        let deleted = self.within(self.tokens.delete_many(doc! { "_id": { "$in": ids } })).await?;
        Ok(deleted.deleted_count)
    }

    async fn insert(&self, tokens: &[&Token]) -> Result<(), TokenError> {
        let now = DateTime::now();
        let documents = tokens.iter().map(|token| {
            let mut document = self.members(token, now);
            document.insert("createdAt", now);
            document
        });
        self.within(self.tokens.insert_many(documents)).await.map(|_| ())
    }

    async fn update(&self, id: &Bson, token: &Token) -> Result<(), TokenError> {
        let members = self.members(token, DateTime::now());
        self.within(self.tokens.update_one(doc! { "_id": id }, doc! { "$set": members })).await.map(|_| ())
    }

    fn members(&self, token: &Token, now: DateTime) -> Document {
        // As the drivers of other languages write it: the smaller type where it fits.
        let chain_id = i32::try_from(self.chain_id).map_or(Bson::Int64(self.chain_id), Bson::Int32);
        doc! {
            "address": token.address.to_checksum(None),
            "name": &token.name,
            "symbol": &token.symbol,
            "decimals": i32::from(token.decimals),
            "chainId": chain_id,
            "updatedAt": now,
        }
    }

    /// This chain's documents by `_id`, each as a row or with the reason why it is none.
    async fn documents(&self) -> Result<Vec<(Bson, Result<Row, String>)>, TokenError> {
        let this_chain = doc! { "chainId": { "$in": [self.chain_id, self.chain_id.to_string()] } };
        let members = doc! { "address": 1, "name": 1, "symbol": 1, "decimals": 1, "chainId": 1, "fromBlock": 1 };
        let find = self.tokens.find(this_chain).projection(members).sort(doc! { "_id": 1 });
        let limit = i64::try_from(MAX_ROWS + 1).unwrap_or(i64::MAX);
        let batch = u32::try_from(BATCH).unwrap_or(u32::MAX);
        let mut cursor = self.within(find.limit(limit).batch_size(batch).max_time(self.timeout)).await?;
        let mut documents = Vec::new();
        while self.within(cursor.advance()).await? {
            if documents.len() == MAX_ROWS {
                return Err(self.fatal(&format!("more than {MAX_ROWS} documents for chain {}", self.chain_id)));
            }
            let mut document = cursor.deserialize_current().map_err(|error| self.fault(&error))?;
            let id = document.remove("_id").unwrap_or(Bson::Null);
            let row = deserialize_from_document(document);
            documents.push((id, row.map_err(|error| shown(&error.to_string(), MAX_FAULT))));
        }
        Ok(documents)
    }

    async fn within<T>(&self, call: impl IntoFuture<Output = Result<T, Error>>) -> Result<T, TokenError> {
        match time::timeout(self.timeout, call.into_future()).await {
            Ok(answer) => answer.map_err(|error| self.fault(&error)),
            Err(_) => Err(TokenError::Transient(format!("{}: no answer within {:?}", self.place, self.timeout))),
        }
    }

    fn fault(&self, error: &Error) -> TokenError {
        let place = &self.place;
        let text = shown(&scrub(&error.kind.to_string()), MAX_FAULT);
        match error.kind.as_ref() {
            kind if code_of(kind) == Some(DUPLICATE_KEY) => self.fatal(
                "two documents of one chain have one address; `chaintap tokens list` names them, \
                 `chaintap tokens remove ADDRESS` takes both away",
            ),
            ErrorKind::Authentication { .. } => self.fatal("user and password were refused"),
            kind if matches!(code_of(kind), Some(UNAUTHORIZED | AUTHENTICATION_FAILED)) => self.fatal(&text),
            ErrorKind::InvalidArgument { .. }
            | ErrorKind::InvalidTlsConfig { .. }
            | ErrorKind::IncompatibleServer { .. }
            | ErrorKind::Write(WriteFailure::WriteError(_))
            | ErrorKind::InsertMany(_) => self.fatal(&text),
            _ => TokenError::Transient(format!("{place}: {text}")),
        }
    }

    fn fatal(&self, fault: &str) -> TokenError {
        TokenError::Fatal(format!("{}: {fault}", self.place))
    }
}

#[async_trait]
impl TokenDirectory for MongoDirectory {
    async fn load(&self) -> Result<Loaded, TokenError> {
        let mut gathering = Gathering::default();
        for (id, row) in self.documents().await? {
            gathering.take(|| format!("_id {}", shown(&id.to_string(), 64)), row.and_then(|row| row.listed()));
        }
        Ok(gathering.finish())
    }

    /// By a change stream, where the server has them. Resolves also when the stream was just opened (anew), because
    /// nobody can tell what changed before.
    async fn changed(&self) {
        let mut watch = self.watch.lock().await;
        loop {
            let reason = match &mut watch.stream {
                Stream::Impossible => std::future::pending().await,
                Stream::Open(stream) => match next_change(stream).await {
                    Ok(()) => {
                        watch.pauses.reset();
                        return;
                    }
                    Err(reason) => reason,
                },
                Stream::Closed => match self.open_stream().await {
                    Ok(None) => {
                        watch.stream = Stream::Impossible;
                        continue;
                    }
                    Ok(Some(stream)) => {
                        watch.stream = Stream::Open(Box::new(stream));
                        return;
                    }
                    Err(reason) => reason,
                },
            };
            debug!(server = self.place, reason, "the change stream of the tokens is closed");
            watch.stream = Stream::Closed;
            watch.pauses.wait(Some(MIN_REOPEN)).await;
        }
    }

    async fn close(&self) {
        // The driver's workers panic where the runtime ends under them.
        let end = self.client.clone().shutdown().immediate(true);
        if time::timeout(self.timeout, end.into_future()).await.is_err() {
            debug!(server = self.place, "the MongoDB client did not end in time");
        }
    }
}

/// The change stream, kept from one call to the next, so that what changes between them is seen.
#[derive(Debug)]
struct Watch {
    stream: Stream,
    pauses: Backoff,
}

type Changes = ChangeStream<ChangeStreamEvent<Document>>;

#[derive(Debug)]
enum Stream {
    Closed,
    Open(Box<Changes>),
    /// The server has none, or does not give us one.
    Impossible,
}

impl Default for Watch {
    fn default() -> Self {
        Self { stream: Stream::Closed, pauses: Backoff::new(MAX_REOPEN) }
    }
}

impl MongoDirectory {
    /// The change stream; none where the server has none for us.
    async fn open_stream(&self) -> Result<Option<Changes>, String> {
        match time::timeout(self.timeout, self.tokens.watch().into_future()).await {
            Ok(Ok(stream)) => Ok(Some(stream)),
            Ok(Err(error)) if code_of(&error.kind).is_some_and(|code| NO_STREAMS.contains(&code)) => {
                info!(server = self.place, "no change streams here: a changed token is seen at the next refresh");
                Ok(None)
            }
            Ok(Err(error)) => Err(self.fault(&error).to_string()),
            Err(_) => Err(format!("no answer within {:?}", self.timeout)),
        }
    }
}

/// Waits for a change, and until it is quiet after it.
async fn next_change(stream: &mut Changes) -> Result<(), String> {
    match time::timeout(MAX_SILENCE, stream.next()).await {
        Ok(Some(Ok(_))) => {}
        Ok(Some(Err(error))) => return Err(shown(&scrub(&error.kind.to_string()), MAX_FAULT)),
        Ok(None) => return Err("ended by the server".to_owned()),
        Err(_) => return Err(format!("silent for {MAX_SILENCE:?}")),
    }
    let latest = Instant::now() + MAX_QUIET;
    let quiet = || latest.min(Instant::now() + QUIET);
    while let Ok(Some(Ok(_))) = time::timeout_at(quiet(), stream.next()).await {
        if Instant::now() >= latest {
            break;
        }
    }
    Ok(())
}

const UNAUTHORIZED: i32 = 13;
const AUTHENTICATION_FAILED: i32 = 18;
const DUPLICATE_KEY: i32 = 11_000;
/// What servers without change streams say, or to users who may only read: no replica set, unknown stage, unsupported
/// command or option, change streams not enabled (Amazon DocumentDB), not authorised.
const NO_STREAMS: [i32; 7] = [40_573, 40_324, 59, 115, 303, 136, UNAUTHORIZED];

/// The server's error code (`error_codes.yml` of MongoDB), where it is the server that refused.
fn code_of(kind: &ErrorKind) -> Option<i32> {
    match kind {
        ErrorKind::Command(error) => Some(error.code),
        ErrorKind::Write(WriteFailure::WriteError(error)) => Some(error.code),
        ErrorKind::InsertMany(error) => error.write_errors.iter().flatten().map(|error| error.code).next(),
        _ => None,
    }
}

/// The driver quotes what it cannot read, which may be a password: only its kind of fault is told.
fn bad_uri(place: &str, error: &Error) -> TokenError {
    match error.kind.as_ref() {
        ErrorKind::DnsResolve { .. } => TokenError::Transient(format!("{place}: the DNS does not know it")),
        _ => TokenError::Fatal(format!(
            "{place}: not a MongoDB connection string; reserved characters (: / ? # [ ] @ %) in user and password \
             must be percent-encoded, and options must be known ones"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bad_connection_string_is_never_quoted() {
        for uri in [
            "mongodb://user:CANARY%zz@127.0.0.1/db",
            "mongodb://127.0.0.1/?connectTimeoutMS=CANARY",
            "https://CANARY@h/",
        ] {
            let uri = SecretUrl::parse(uri).unwrap();
            let told = MongoDirectory::connect(&uri, "db", 1, Duration::from_secs(1)).await.unwrap_err();
            assert!(matches!(told, TokenError::Fatal(_)), "{told}");
            assert!(!format!("{told} {told:?}").contains("CANARY"), "{told}");
        }
    }
}
