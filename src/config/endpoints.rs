//! Addresses of servers: what is accepted for each kind, told without quoting the address, which may hold a key.

use url::Url;

use super::secret::SecretUrl;

/// What is wrong with a value, to be read after the variable's name, and the mend. Quotes nothing of a secret.
pub(super) type Fault = (String, String);

fn fault<T>(text: impl Into<String>, mend: impl Into<String>) -> Result<T, Fault> {
    Err((text.into(), mend.into()))
}

/// One address with one of these schemes.
pub(super) fn address(text: &str, schemes: &[&str], what: &str) -> Result<SecretUrl, Fault> {
    let allowed: Vec<String> = schemes.iter().map(|scheme| format!("{scheme}://")).collect();
    let mend = format!("write {what} that begins with {}", allowed.join(" or "));
    let url = SecretUrl::parse(text).map_err(|error| (error, mend.clone()))?;
    if !schemes.contains(&url.scheme()) {
        return fault("has a scheme that is not accepted here", mend);
    }
    Ok(url)
}

/// `WEB3_PROVIDER`: endpoints in order of preference, each with a name of its own.
pub(super) fn providers(text: &str) -> Result<Vec<SecretUrl>, Fault> {
    let mut urls: Vec<SecretUrl> = Vec::new();
    let given: Vec<&str> = text.split(',').map(str::trim).collect();
    for (index, one) in given.iter().enumerate() {
        let which = if given.len() > 1 { format!("number {} ", index + 1) } else { String::new() };
        let parsed = if one.is_empty() {
            fault("is empty", "remove the comma too many")
        } else {
            address(one, &["wss", "ws", "https", "http"], "an endpoint")
        };
        let url = parsed.map_err(|(text, mend)| (format!("{which}{text}"), mend))?;
        // A socket and the HTTP address beside it are one endpoint, any other two of one place are a mistake.
        let is_again = |earlier: &SecretUrl| earlier.is_beside(&url) && earlier.is_socket() == url.is_socket();
        if urls.iter().any(is_again) {
            return fault(format!("{which}is given twice"), "remove one of the two");
        }
        urls.push(url);
    }
    SecretUrl::distinguish(&mut urls);
    Ok(urls)
}

/// `REDIS_URL`, with the chain's database number put in.
pub(super) fn redis(text: &str, database: u8) -> Result<SecretUrl, Fault> {
    let checked = address(text, &["redis", "rediss"], "an address")?;
    let Ok(mut url) = Url::parse(text) else {
        return fault("is not a URL for one server", "write redis://host:6379");
    };
    if url.fragment().is_some() {
        return fault(
            "has a # part, which would turn certificate checks off",
            "remove it; write # of a password as %23",
        );
    }
    match url.path().trim_matches('/') {
        "" => url.set_path(&format!("/{database}")),
        given if given == database.to_string() => {}
        given if given.chars().all(|sign| sign.is_ascii_digit()) => {
            return fault(
                format!("has database number {given}, but the chain's is {database}"),
                format!("write /{database} or leave the number out"),
            );
        }
        _ => return fault("has a path that is not a database number", format!("write /{database} or leave it out")),
    }
    Ok(SecretUrl::parse(url.as_str()).unwrap_or(checked))
}

/// `MONGODB_URI`, and the database that it names, if it does.
pub(super) fn mongodb(text: &str) -> Result<(SecretUrl, Option<String>), Fault> {
    let url = address(text, &["mongodb", "mongodb+srv"], "a connection string")?;
    let after_host = text.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map(|(_, path)| path);
    let database = after_host.map(|path| path.split(['?', '#']).next().unwrap_or_default());
    Ok((url, database.filter(|name| !name.is_empty()).map(str::to_owned)))
}

/// The name of a database in `MongoDB`.
pub(super) fn database(name: &str) -> Result<String, Fault> {
    let forbidden = |sign: char| sign.is_whitespace() || "/\\.\"$*<>:|?".contains(sign);
    if name.len() > 63 || name.contains(forbidden) {
        return fault(format!("is not a database name: '{name}'"), "use at most 63 letters, digits, '_' or '-'");
    }
    Ok(name.to_owned())
}

/// The URL of an SQS queue.
pub(super) fn queue(text: &str) -> Result<(), Fault> {
    let mend = "write the queue's URL, e.g. https://sqs.eu-west-1.amazonaws.com/123456789012/transfers";
    address(text, &["https", "http"], "the queue's URL").map_err(|(text, _)| (text, mend.to_owned()))?;
    let Ok(url) = Url::parse(text) else { return fault("is not a URL", mend) };
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return fault("has a user, query or # part, which no queue has", mend);
    }
    if url.path().trim_matches('/').is_empty() {
        return fault("names no queue", mend);
    }
    Ok(())
}

/// The region in the URL of a queue on AWS.
pub(super) fn queue_region(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let host = url.host_str()?;
    let service = host.strip_suffix(".amazonaws.com").or_else(|| host.strip_suffix(".amazonaws.com.cn"))?;
    let region = service.strip_prefix("sqs.").or_else(|| service.strip_suffix(".queue"))?;
    (!region.contains('.')).then(|| region.to_owned())
}

/// Another endpoint of an AWS service.
pub(super) fn aws_endpoint(text: &str) -> Result<String, Fault> {
    address(text, &["https", "http"], "an endpoint")?;
    match Url::parse(text) {
        Ok(url) if url.username().is_empty() && url.password().is_none() => Ok(text.to_owned()),
        _ => fault("has a user part", "give keys as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    }
}

/// `SENTRY_DSN`: `https://key@host/project`.
pub(super) fn sentry(text: &str) -> Result<SecretUrl, Fault> {
    let url = address(text, &["https", "http"], "a DSN")?;
    let whole = Url::parse(text).is_ok_and(|url| {
        let project = url.path().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        !url.username().is_empty() && !project.is_empty()
    });
    if !whole {
        return fault("is not a DSN", "copy it from the project's settings: https://key@host/project");
    }
    Ok(url)
}
