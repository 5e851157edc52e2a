//! Values that never print.
//!
//! Everything that may hold a key is one of these two types, so that no `Debug`, log field, error or metric label can
//! leak it: of a URL scheme and host show, of any other secret at most its last four characters.

use std::{fmt, net::IpAddr};

use secrecy::{ExposeSecret, SecretString};
use url::Url;

/// Providers that put the customer's key into the first label of the host name.
const KEY_IN_HOST: [&str; 2] = [".quiknode.pro", ".rivet.cloud"];
/// A secret shows its last characters from this length on (contract §2).
const SHOW_END_FROM: usize = 16;

/// Parts of a path that are shorter than this are words, and so are those without a digit.
const KEY_FROM: usize = 10;
/// Parts of the rest that are shorter than this say nothing.
const WORD_FROM: usize = 4;

/// A URL whose path, query and user part may hold keys: shows scheme and host only.
#[derive(Clone)]
pub struct SecretUrl {
    shown: String,
    name: String,
    private: bool,
    value: SecretString,
}

impl SecretUrl {
    /// Takes the URL as it was given; a list of hosts (`mongodb://a:27017,b:27017/db`) is understood.
    ///
    /// # Errors
    ///
    /// A description of the fault that does not quote the value.
    pub fn parse(text: &str) -> Result<Self, String> {
        let hosts = parse_hosts(text)?;
        let names: Vec<String> = hosts.iter().map(|(_, url)| mask_host(url.host_str().unwrap_or_default())).collect();
        let scheme = hosts.first().map(|(scheme, _)| scheme.as_str()).unwrap_or_default();
        Ok(Self {
            shown: format!("{scheme}://{}", names.join(",")),
            name: names.join(","),
            private: hosts.iter().all(|(_, url)| is_private(url)),
            value: text.into(),
        })
    }

    /// The whole URL, for the client that connects with it and for nobody else.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.value.expose_secret()
    }

    /// Whether it is a WebSocket address.
    #[must_use]
    pub fn is_socket(&self) -> bool {
        matches!(self.scheme(), "ws" | "wss")
    }

    /// The HTTP address beside a WebSocket one: same host and path, without Infura's `/ws/` (contract §2).
    #[must_use]
    pub fn http_twin(&self) -> Self {
        // Whatever its case, the scheme begins with these two letters.
        let after = |url: &str| url.get("ws".len()..).unwrap_or_default().to_owned();
        let twin = format!("http{}", after(self.expose()).replacen("/ws/", "/", 1));
        Self { shown: format!("http{}", after(&self.shown)), value: twin.into(), ..self.clone() }
    }

    /// Whether both lead to one node, over one scheme or two: same host and port, same path (Infura's `/ws/` apart) and query.
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        self.place().is_some_and(|place| other.place() == Some(place))
    }

    fn place(&self) -> Option<(String, u16, String, Option<String>)> {
        let url = Url::parse(self.expose()).ok()?;
        let path = url.path().replacen("/ws/", "/", 1);
        let (host, port) = (url.host_str()?.to_ascii_lowercase(), url.port_or_known_default()?);
        Some((host, port, path.trim_end_matches('/').to_owned(), url.query().map(str::to_owned)))
    }

    /// The scheme: `wss`.
    #[must_use]
    pub fn scheme(&self) -> &str {
        self.shown.split(':').next().unwrap_or_default()
    }

    /// The host, for logs, metric labels and `/health`; with `#2`, `#3` … where several endpoints share one.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The parts of it that may be keys, as they stand in it: to be taken out of what its server says.
    pub(crate) fn keys(&self) -> Vec<String> {
        let Ok(url) = Url::parse(self.expose()) else { return Vec::new() };
        let is_key = |part: &&str| part.len() >= KEY_FROM && part.contains(|sign: char| sign.is_ascii_digit());
        let path = url.path_segments().into_iter().flatten().filter(is_key);
        let query = url.query().unwrap_or_default().split('&').filter_map(|pair| Some(pair.split_once('=')?.1));
        let host = url.host_str().unwrap_or_default().split('.').filter(|label| is_key(label) && looks_random(label));
        let user = [url.username(), url.password().unwrap_or_default()];
        let parts = path.chain(query).chain(host).chain(user).filter(|part| part.len() >= WORD_FROM);
        parts.map(str::to_owned).collect()
    }

    /// Gives each of the endpoints a name of its own.
    pub(super) fn distinguish(urls: &mut [Self]) {
        let plain: Vec<String> = urls.iter().map(|url| url.name.clone()).collect();
        for (index, url) in urls.iter_mut().enumerate() {
            let earlier = plain.iter().take(index).filter(|name| **name == url.name).count();
            if earlier > 0 {
                url.name = format!("{}#{}", url.name, earlier + 1);
            }
        }
    }

    /// Whether the traffic crosses networks of others in the clear, told from the scheme and the host's name or
    /// address.
    pub(super) fn is_exposed(&self) -> bool {
        let scheme = self.scheme();
        let encrypted = matches!(scheme, "https" | "wss" | "rediss" | "mongodb+srv")
            || (scheme == "mongodb" && ["tls=true", "ssl=true"].iter().any(|option| self.expose().contains(option)));
        !encrypted && !self.private
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One parsed URL per host of the list, each without user part and path, and the scheme.
fn parse_hosts(text: &str) -> Result<Vec<(String, Url)>, String> {
    let Some((scheme, rest)) = text.split_once("://") else { return Err("is not a URL (scheme:// is missing)".into()) };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // An unescaped '/' or '#' in a password ends the authority early; what is left of it must not pass for a host.
    if path.contains('@') {
        return Err("has an '@' after the host; write @ / ? # of a password or path as %40 %2F %3F %23".into());
    }
    let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
    hosts
        .split(',')
        .map(|host| {
            let url = Url::parse(&format!("{scheme}://{host}")).map_err(|error| format!("is not a URL ({error})"))?;
            match url.host_str().unwrap_or_default() {
                "" => Err("is not a URL (the host is missing)".to_owned()),
                _ => Ok((url.scheme().to_owned(), url)),
            }
        })
        .collect()
}

/// The host without what looks like a key: a label that is long and random, or one that is known to be the key.
#[must_use]
pub fn mask_host(host: &str) -> String {
    if KEY_IN_HOST.iter().any(|domain| host.ends_with(domain))
        && let Some((key, domain)) = host.split_once('.')
        && domain.contains('.')
    {
        return format!("{}.{domain}", mask(key));
    }
    host.split('.')
        .map(|label| if looks_random(label) { mask(label) } else { label.to_owned() })
        .collect::<Vec<_>>()
        .join(".")
}

/// Long, with digits among the letters, or nothing but hexadecimal digits.
fn looks_random(label: &str) -> bool {
    let signs: Vec<char> = label.chars().filter(char::is_ascii_alphanumeric).collect();
    let digits = signs.iter().filter(|sign| sign.is_ascii_digit()).count();
    let letters = signs.len() - digits;
    signs.len() >= SHOW_END_FROM && digits >= 4 && (letters >= 4 || signs.iter().all(char::is_ascii_hexdigit))
}

fn mask(secret: &str) -> String {
    let signs = secret.chars().count();
    if signs < SHOW_END_FROM {
        return "****".to_owned();
    }
    format!("****{}", secret.chars().skip(signs - 4).collect::<String>())
}

/// Whether a host can only be near: loopback and private addresses, names without a dot (containers, clusters) and
/// names under the domains that are kept for local use.
fn is_private(url: &Url) -> bool {
    // Schemes that the URL standard does not know keep addresses as text.
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    if let Ok(address) = host.parse::<IpAddr>() {
        return match address {
            IpAddr::V4(v4) => {
                let [first, second, ..] = v4.octets();
                let shared = first == 100 && (64..128).contains(&second); // RFC 6598, carrier-grade NAT
                v4.is_loopback() || v4.is_private() || v4.is_link_local() || shared
            }
            IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
        };
    }
    let local = ["localhost", "local", "internal", "lan", "svc", "home.arpa"];
    !host.contains('.') || local.iter().any(|domain| host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')))
}

/// A secret that is no URL.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Takes the secret as it was given.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The secret, for the client that authenticates with it and for nobody else.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&mask(self.expose()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A list of addresses, comma separated, as scheme and host of each; a value that is none of that is masked.
#[must_use]
pub fn redact_addresses(value: &str) -> String {
    let urls: Result<Vec<_>, _> = value.split(',').map(|one| SecretUrl::parse(one.trim())).collect();
    match urls.or_else(|_| SecretUrl::parse(value).map(|url| vec![url])) {
        Ok(urls) => urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        Err(_) => mask(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_shows_scheme_and_host_only() {
        let cases = [
            ("wss://eth-mainnet.g.alchemy.com/v2/KEY", "wss://eth-mainnet.g.alchemy.com"),
            ("https://user:KEY@rpc.example.com:8545/?k=KEY", "https://rpc.example.com"),
            ("https://silent-old-KEY.base-mainnet.quiknode.pro/KEY/", "https://****.base-mainnet.quiknode.pro"),
            ("https://0123456789abcdef0123456789abKEY1.eth.example.com/", "https://****key1.eth.example.com"),
            ("mongodb://u:KEY@a.example:27017,b.example:27017/db?x=KEY", "mongodb://a.example,b.example"),
            ("redis://:KEY@127.0.0.1:6379/1", "redis://127.0.0.1"),
            ("http://[::1]:8545", "http://[::1]"),
        ];
        for (given, shown) in cases {
            let url = SecretUrl::parse(given).unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), shown);
            assert_eq!(url.expose(), given);
        }
    }

    #[test]
    fn a_bad_url_is_described_without_being_quoted() {
        let bad = ["KEY", "https://", "https://user:KEY/x@host/", "redis://:12/KEY@host/0", "https://h:KEY/", "://KEY"];
        for given in bad {
            let error = SecretUrl::parse(given).unwrap_err();
            assert!(!error.contains("KEY"), "{error}");
        }
    }

    #[test]
    fn endpoints_on_one_host_get_names_of_their_own() {
        let mut urls: Vec<SecretUrl> =
            ["https://a/1", "https://b/1", "https://a/2", "wss://a/3"].map(|url| SecretUrl::parse(url).unwrap()).into();
        SecretUrl::distinguish(&mut urls);
        assert_eq!(urls.iter().map(SecretUrl::name).collect::<Vec<_>>(), ["a", "b", "a#2", "a#3"]);
    }

    #[test]
    fn plaintext_is_exposed_unless_the_host_is_near() {
        let exposed =
            ["ws://rpc.example.com/KEY", "redis://10.example.com", "http://8.8.8.8", "mongodb://a.example/db"];
        let safe = [
            "wss://rpc.example.com",
            "http://127.0.0.1:1",
            "redis://10.1.2.3",
            "redis://redis:6379",
            "http://node.svc.cluster.local",
            "http://[::1]:8545",
            "mongodb://a.example/db?tls=true",
            "http://100.64.0.1",
        ];
        assert!(exposed.iter().all(|url| SecretUrl::parse(url).unwrap().is_exposed()));
        for url in safe {
            assert!(!SecretUrl::parse(url).unwrap().is_exposed(), "{url}");
        }
    }

    #[test]
    fn an_opaque_secret_shows_its_end_only_when_it_is_long() {
        assert_eq!(Secret::new("short").to_string(), "****");
        assert_eq!(format!("{:?}", Secret::new("0123456789abcdef")), "****cdef");
        assert_eq!(
            redact_addresses("https://a.example/KEY, wss://b.example/KEY"),
            "https://a.example, wss://b.example"
        );
        assert_eq!(redact_addresses("mongodb://a:1,b:2/x"), "mongodb://a,b");
    }
}
