//! Reads `[server]`.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::table::{Field, Table};
use super::values::{duration, list, one_or_more, optional_text, size, text, word};
use crate::config::{ListenAddr, ServerConfig, TlsConfig};

pub(super) fn server(mut table: Table<'_>) -> ServerConfig {
    let mut server = ServerConfig::default();
    table.set("listen", &mut server.listen, listen);
    table.set("admin_listen", &mut server.admin_listen, admin_listen);
    table.set("drain_timeout", &mut server.drain_timeout, duration);
    table.set("drain_delay", &mut server.drain_delay, duration);
    table.set("max_body", &mut server.max_body, size);
    table.set("allowed_hosts", &mut server.allowed_hosts, |field| list(field, host));
    table.set("allowed_origins", &mut server.allowed_origins, |field| list(field, origin));
    server.tls = tls(&mut table);
    table.finish();
    server
}

fn listen(field: &Field<'_>) -> Option<Vec<ListenAddr>> {
    let listen = one_or_more(field, listen_addr)?;
    if listen.is_empty() {
        field.error("must name an address", "write \"localhost:8080\"");
        return None;
    }
    Some(listen)
}

fn listen_addr(field: &Field<'_>) -> Option<ListenAddr> {
    let written = text(field)?;
    written
        .parse()
        .inspect_err(|_| {
            field.wrong(
                "an address to listen on",
                "write IP:PORT, such as \"127.0.0.1:8080\", \"0.0.0.0:8080\" or \"localhost:8080\" (both loopback addresses)",
            );
        })
        .ok()
}

fn admin_listen(field: &Field<'_>) -> Option<SocketAddr> {
    listen_addr(field).map(ListenAddr::socket)
}

fn host(field: &Field<'_>) -> Option<String> {
    let host = word(field)?;
    if host.contains("://") || host.contains('/') {
        field.wrong("a host as in the header Host", "write it without scheme and path, such as \"tidegate.internal\"");
        return None;
    }
    Some(host.to_owned())
}

fn origin(field: &Field<'_>) -> Option<String> {
    let origin = word(field)?;
    let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    if !rest.is_some_and(|host| !host.is_empty() && !host.contains('/')) {
        field.wrong("an origin", "write SCHEME://HOST, such as \"https://app.example\"");
        return None;
    }
    Some(origin.to_owned())
}

fn tls(table: &mut Table<'_>) -> Option<TlsConfig> {
    let cert_field = table.field("tls_cert");
    let key_field = table.field("tls_key");
    let cert = cert_field.as_ref().and_then(optional_text);
    let key = key_field.as_ref().and_then(optional_text);
    match (cert, key) {
        (Some(cert), Some(key)) => return Some(TlsConfig { cert: PathBuf::from(cert), key: PathBuf::from(key) }),
        (Some(_), None) => missing_half(cert_field, "tls_key"),
        (None, Some(_)) => missing_half(key_field, "tls_cert"),
        (None, None) => {}
    }
    None
}

fn missing_half(written: Option<Field<'_>>, other: &str) {
    if let Some(field) = written {
        field.error(format!("needs {other} beside it"), format!("write {other} = \"FILE.pem\""));
    }
}
