//! From what was typed to what is true: each variable is parsed and checked, and checked against the others. Every
//! mistake is reported; settings come out only where there is none.

use std::{net::IpAddr, net::SocketAddr, path::PathBuf, sync::Arc};

use super::{
    AwsSettings, ChainProfile, Durability, LogFormat, LogSettings, Provider, Purpose, RecordSettings, SecretUrl,
    Settings, SinkTarget, StartBlock, StoreSettings, TokenSettings, chains,
    endpoints::{self, Fault},
    entries,
    files::Files,
    layers::Layers,
    limits,
    problem::{Problem, nearest},
    providers,
    reader::Reader,
    secret::{Secret, redact_addresses},
    variables::{self, Secrecy},
};
use crate::domain::{DeliveryMode, MAX_BLOCK_NUMBER};

/// The settings, where they could be put together at all; they are valid only where no problem was reported.
pub(super) fn settings(
    files: &Files,
    layers: &Layers,
    purpose: Purpose,
    (problems, warnings): (&mut Vec<Problem>, &mut Vec<String>),
) -> Option<Settings> {
    let known = chains::read(&files.chains, problems);
    let mut reader = Reader { layers, problems };
    let chain = chain(&mut reader, &known);
    let ids: Vec<u64> = known.iter().map(|chain| chain.id).collect();
    let providers = providers(&mut reader, files, purpose, warnings);
    let store = store(&mut reader, chain.as_ref());
    let tokens = tokens(&mut reader, warnings);
    let service = reader.read("LAST_PROCESSED_BLOCK_KEY", |text| {
        let mend = "use letters, digits, '_', '-', '.', ':', at most 64";
        chains::service_name(text).map_err(|error| (format!("is wrong: {error}"), mend.to_owned()))
    });
    let start = reader.read("START_BLOCK", start_block);
    let is_expected = reader.read("EXPECT_STATE", limits::flag);
    let start = is_expected.and_then(|is_expected| if is_expected { Some(StartBlock::Expected) } else { start });
    let audit = reader.read("AUDIT", limits::flag);
    let deliver = reader.read("DELIVER", delivery);
    let http = http(&mut reader);
    let sentry_dsn = reader.read("SENTRY_DSN", endpoints::sentry);
    let log = log(&mut reader);
    let record = record(&mut reader);
    let limits = limits::read(&mut reader, chain.as_ref(), audit != Some(false));
    let mut aws = AwsSettings::read(layers, reader.problems);
    // The queue of the built-in handler; the entries take it as it is.
    Reader { layers, problems }.read("TRANSFER_HANDLER_SQS", endpoints::queue);
    let chain_id = chain.as_ref().map(|chain| chain.id);
    let registry = entries::read((files, layers), (chain_id, &ids), problems, warnings);
    // Where there are mistakes, it may be empty because of them.
    if purpose == Purpose::Listen && problems.is_empty() && registry.listeners().is_empty() {
        problems.push(entries::nothing(files, chain_id));
    }
    aws.fit_region(&registry, warnings);
    let chain = chain?;
    let settings = Settings {
        service: service.unwrap_or_else(|| chain.name.clone()),
        chain,
        providers: providers?,
        store: store?,
        tokens: tokens?,
        start: start?,
        deliver: deliver?,
        audit: audit?,
        registry: Arc::new(registry),
        http: http?,
        sentry_dsn,
        aws,
        log: log?,
        record,
        limits: limits?,
        warnings: Vec::new(),
        given: shown(layers),
    };
    warn_of_plaintext(&settings, warnings);
    Some(settings)
}

fn chain(reader: &mut Reader<'_>, known: &[ChainProfile]) -> Option<ChainProfile> {
    let list = known.iter().map(|chain| format!("{} {}", chain.id, chain.name)).collect::<Vec<_>>().join(", ");
    if known.is_empty() {
        // Then chains.toml is the mistake.
        return None;
    }
    if reader.given("CHAIN_ID").is_none() {
        reader.report("CHAIN_ID", "is not set", &format!("set it to one of: {list}"));
    }
    reader.read("CHAIN_ID", |text| {
        let Ok(id) = text.parse::<u64>() else {
            let names = known.iter().find(|chain| chain.name == text);
            let mend =
                names.map_or_else(|| format!("set it to one of: {list}"), |chain| format!("set it to {}", chain.id));
            return Err((format!("is not a chain id: '{text}'"), mend));
        };
        known.iter().find(|chain| chain.id == id).cloned().ok_or_else(|| {
            let mend = format!("add a [[chain]] with id = {id} to config/chains.toml, or use one of: {list}");
            (format!("names chain {id}, which is not in chains.toml"), mend)
        })
    })
}

fn providers(
    reader: &mut Reader<'_>,
    files: &Files,
    purpose: Purpose,
    warnings: &mut Vec<String>,
) -> Option<Vec<Provider>> {
    let source = files.providers.as_ref();
    if let Some(given) = reader.given("WEB3_PROVIDER") {
        // What stands in the file is not read for mistakes: it may name keys that are not set here.
        if let Some(source) = source.filter(|source| providers::read(source, reader.layers, &mut Vec::new()).is_any) {
            warnings.push(format!(
                "{}: not used, because WEB3_PROVIDER is set ({}); remove one of the two",
                source.path, given.place
            ));
        }
        let urls = reader.read("WEB3_PROVIDER", endpoints::providers)?;
        return Some(providers::paired(urls));
    }
    let listed = source.map(|source| (providers::read(source, reader.layers, reader.problems), source));
    let listed = listed.filter(|(listed, _)| listed.is_any);
    if let Some((listed, source)) = listed {
        if listed.providers.is_empty() && reader.problems.is_empty() && purpose == Purpose::Listen {
            let text = "no [[provider]] has an address: nothing could be asked";
            reader.problems.push(Problem::at(source, 0..0, text).mend("set a variable that one of them takes"));
        }
        return Some(listed.providers);
    }
    if purpose == Purpose::Listen {
        let mend = "set it to one or more endpoints, comma separated, e.g. wss://host/key,https://host/key";
        reader.report("WEB3_PROVIDER", "is not set", mend);
    }
    Some(Vec::new())
}

fn store(reader: &mut Reader<'_>, chain: Option<&ChainProfile>) -> Option<StoreSettings> {
    let durability = reader.read("DURABILITY", |text| match text {
        "auto" => Ok(Durability::Auto),
        "required" => Ok(Durability::Required),
        "none" => Ok(Durability::None),
        other => Err((format!("is not a durability: '{other}'"), nearest(other, ["auto", "required", "none"]))),
    });
    if reader.given("REDIS_URL").is_none() {
        return reader.text("DATA_DIR").map(|dir| StoreSettings::Embedded { dir: PathBuf::from(dir) });
    }
    // Without a chain the number cannot be judged; the chain's own mistake is reported.
    let database = chain.map(|chain| chain.redis_db)?;
    let url = reader.read("REDIS_URL", |text| endpoints::redis(text, database))?;
    Some(StoreSettings::Redis { url, durability: durability? })
}

fn tokens(reader: &mut Reader<'_>, warnings: &mut Vec<String>) -> Option<TokenSettings> {
    let name = match (reader.given("MONGODB_URI").is_some(), reader.given("MONGO_URI").is_some()) {
        (true, true) => {
            reader.report("MONGO_URI", "and MONGODB_URI are both set", "remove one of them");
            return None;
        }
        (false, true) => "MONGO_URI",
        _ => "MONGODB_URI",
    };
    let database = reader.read("MONGODB_DATABASE", endpoints::database);
    let file = reader.text("TOKENS_FILE").map(PathBuf::from);
    let Some((uri, in_uri)) = reader.read(name, endpoints::mongodb) else {
        if reader.given(name).is_some() {
            return None;
        }
        if database.is_some() {
            warnings.push("MONGODB_DATABASE is set but MONGODB_URI is not: no token list is read from MongoDB".into());
        }
        return tokens_file(reader, file);
    };
    if file.is_some() {
        reader.report("TOKENS_FILE", &format!("and {name} are both set"), "choose one source of the token list");
        return None;
    }
    let database = database.or_else(|| in_uri.filter(|_| reader.given("MONGODB_DATABASE").is_none()));
    if database.is_none() && reader.given("MONGODB_DATABASE").is_none() {
        reader.report(name, "names no database", "set MONGODB_DATABASE, or end the address with /name");
    }
    Some(TokenSettings::Mongo { uri, database: database? })
}

fn tokens_file(reader: &mut Reader<'_>, file: Option<PathBuf>) -> Option<TokenSettings> {
    match file {
        None => Some(TokenSettings::Off),
        Some(file) if file.is_file() => Some(TokenSettings::File(file)),
        Some(file) => {
            reader.report("TOKENS_FILE", &format!("names no file: {}", file.display()), "give the path of a JSON file");
            None
        }
    }
}

fn start_block(text: &str) -> Result<StartBlock, Fault> {
    let wrong = || (format!("is not a block: '{text}'"), "write latest, or a number below 2^53".to_owned());
    match text {
        "latest" => Ok(StartBlock::Latest),
        number => match number.parse() {
            Ok(block) if block <= MAX_BLOCK_NUMBER => Ok(StartBlock::At(block)),
            _ => Err(wrong()),
        },
    }
}

fn delivery(text: &str) -> Result<DeliveryMode, Fault> {
    let mend = "use instant, safe, finalized or a depth in blocks";
    match text.parse() {
        Ok(DeliveryMode::Depth(0)) => Err(("is a depth of 0".to_owned(), "write instant".to_owned())),
        Ok(DeliveryMode::Depth(blocks)) if blocks > MAX_BLOCK_NUMBER => {
            Err((format!("is too deep: '{text}'"), mend.to_owned()))
        }
        Ok(mode) => Ok(mode),
        Err(_) => Err((format!("is not a delivery mode: '{text}'"), mend.to_owned())),
    }
}

fn http(reader: &mut Reader<'_>) -> Option<SocketAddr> {
    let address = reader.read("HTTP_BIND", |text| {
        text.trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .map_err(|_| (format!("is not an address: '{text}'"), "write one like 0.0.0.0, 127.0.0.1 or ::".to_owned()))
    });
    let port = reader.read("PORT", |text| {
        text.parse::<u16>().map_err(|_| (format!("is not a port: '{text}'"), "write a number up to 65535".to_owned()))
    });
    Some(SocketAddr::new(address?, port?))
}

fn log(reader: &mut Reader<'_>) -> Option<LogSettings> {
    let levels = ["trace", "debug", "info", "warn", "error", "off"];
    let level = reader.read("LOG_LEVEL", |text| match levels.iter().find(|level| level.eq_ignore_ascii_case(text)) {
        Some(level) => Ok((*level).to_owned()),
        None => Err((format!("is not a level: '{text}'"), nearest(text, levels))),
    });
    let directives = reader.read("RUST_LOG", |text| {
        tracing_subscriber::EnvFilter::try_new(text)
            .map(|_| text.to_owned())
            .map_err(|error| (format!("is not a log filter: {error}"), "write one like info,chaintap=debug".to_owned()))
    });
    let format = reader.read("LOG_FORMAT", |text| match text {
        "json" => Ok(LogFormat::Json),
        "pretty" => Ok(LogFormat::Pretty),
        other => Err((format!("is not a format: '{other}'"), nearest(other, ["json", "pretty"]))),
    });
    Some(LogSettings { filter: directives.or(level)?, format })
}

/// Where the traffic is recorded; the size is checked wherever it is given.
fn record(reader: &mut Reader<'_>) -> Option<RecordSettings> {
    let max_bytes = reader.read("RECORD_MAX_BYTES", limits::bytes)? as u64;
    let dir = reader.text("RECORD_DIR").filter(|dir| !dir.is_empty())?;
    Some(RecordSettings { dir: PathBuf::from(dir), max_bytes })
}

fn warn_of_plaintext(settings: &Settings, warnings: &mut Vec<String>) {
    let in_one = settings.given.iter().any(|[name, ..]| name == "WEB3_PROVIDER");
    let providers = if in_one { "WEB3_PROVIDER" } else { "providers.toml" };
    let mut urls: Vec<(&str, &SecretUrl)> =
        settings.providers.iter().flat_map(Provider::urls).map(|url| (providers, url)).collect();
    if let StoreSettings::Redis { url, .. } = &settings.store {
        urls.push(("REDIS_URL", url));
    }
    if let TokenSettings::Mongo { uri, .. } = &settings.tokens {
        urls.push(("MONGODB_URI", uri));
    }
    urls.extend(settings.sentry_dsn.iter().map(|url| ("SENTRY_DSN", url)));
    let text = |name: &str, url: &SecretUrl| {
        format!("{name}: {url} is not encrypted and the host is not a private one: what is sent can be read on the way")
    };
    warnings.extend(urls.iter().filter(|(_, url)| url.is_exposed()).map(|(name, url)| text(name, url)));
    for (target, name) in settings.registry.targets() {
        let SinkTarget::Sqs { url } = target else { continue };
        let url = SecretUrl::parse(url).ok().filter(SecretUrl::is_exposed);
        warnings.extend(url.map(|url| text(&format!("queue {name}"), &url)));
    }
    for (name, endpoint) in
        [("AWS_ENDPOINT_URL", &settings.aws.endpoint), ("AWS_ENDPOINT_URL_SQS", &settings.aws.sqs_endpoint)]
    {
        let url = endpoint.as_ref().and_then(|endpoint| SecretUrl::parse(endpoint).ok());
        warnings.extend(url.filter(SecretUrl::is_exposed).map(|url| text(name, &url)));
    }
}

/// Every variable with a value, as it may be shown.
fn shown(layers: &Layers) -> Vec<[String; 3]> {
    let given = variables::all().filter_map(|variable| Some((variable, layers.get(variable.name)?)));
    given
        .map(|(variable, given)| {
            let value = match variable.secrecy {
                Secrecy::Open => given.value.clone(),
                Secrecy::Address => redact_addresses(&given.value),
                Secrecy::Opaque => Secret::new(&given.value).to_string(),
            };
            [variable.name.to_owned(), value, given.place.to_string()]
        })
        .collect()
}
