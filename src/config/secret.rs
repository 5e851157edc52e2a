//! Values that never print.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// A URL whose path, query and user part may hold keys: shows scheme and host only.
#[derive(Clone)]
pub struct SecretUrl {
    shown: String,
    value: SecretString,
}

impl SecretUrl {
    /// Takes the URL as it was given.
    ///
    /// # Errors
    ///
    /// A description of the fault that does not quote the value.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = url::Url::parse(text).map_err(|error| format!("is not a URL ({error})"))?;
        let shown = format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default());
        Ok(Self { shown, value: text.into() })
    }

    /// stub
    #[must_use]
    pub fn name(&self) -> String {
        self.shown.clone()
    }
    /// stub
    #[must_use]
    pub fn is_socket(&self) -> bool {
        self.shown.starts_with("ws")
    }
    /// stub
    #[must_use]
    pub fn http_twin(&self) -> Self {
        Self::parse(&self.expose().replacen("ws", "http", 1).replace("/ws/", "/")).unwrap_or_else(|_| self.clone())
    }

    /// The whole URL, for the client that connects with it and for nobody else.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.value.expose_secret()
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
