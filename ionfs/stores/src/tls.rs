//! The TLS implementation.

/// Installs this build's TLS provider, unless the process has already installed another one.
pub fn install_tls_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
