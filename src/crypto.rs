//! One TLS crypto provider for every client: ring.

/// Makes ring the process's provider; clients of the HTTP stack panic without one. Idempotent, so every constructor
/// of a client may call it.
pub fn init() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // A second caller may have won the race; then the provider is there, which is all that is wanted.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}
