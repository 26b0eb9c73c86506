//! TLS on both sides, and HTTP/2 towards upstreams. The certificate is for these tests alone; its key is no secret.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tidegate_core::config::TlsConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::support::*;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/tls").join(name)
}

#[tokio::test]
async fn calls_go_by_tls_to_an_upstream_whose_authority_is_named() {
    let (inner, upstream) = scripted_with(|config| {
        config.server.tls = Some(TlsConfig { cert: file("cert.pem"), key: file("key.pem") });
    })
    .await;
    let mut outer = config(inner.api_addrs()[0]);
    outer.upstreams[0].base_url = format!("https://{}/v1", inner.api_addrs()[0]);
    outer.upstreams[0].ca_file = Some(file("cert.pem"));
    outer.policy.retry.max_attempts = 1;
    let gateway = start(outer.clone()).await;
    let mut caller = client(&gateway).await;
    caller.post("/v1/chat/completions", "", CHAT).await;
    let (mut peer, request) = upstream.request().await;
    assert_eq!(request.text(), CHAT);
    peer.reply("200 OK", "", "{}").await;
    assert_eq!(caller.message(false).await.status(), 200);

    outer.upstreams[0].ca_file = None;
    let distrusts = start(outer).await;
    let mut caller = client(&distrusts).await;
    caller.post("/v1/chat/completions", "", CHAT).await;
    let reply = caller.message(false).await;
    assert_eq!((reply.status(), reply.error("code").as_str()), (502, "upstream_unreachable"));
    assert!(reply.error("message").contains("TLS handshake failed"), "{}", reply.text());
}

/// Answers over HTTP/2 once so many calls are there at one time.
async fn answers_once_all_are_there(listener: TcpListener, calls: usize) {
    let certificate = CertificateDer::from_pem_file(file("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let there = watch::Sender::new(0);
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, there) = (acceptor.clone(), there.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request: Request<Incoming>| {
                let there = there.clone();
                async move {
                    assert_eq!(request.version(), Version::HTTP_2);
                    there.send_modify(|there| *there += 1);
                    there.subscribe().wait_for(|there| *there >= calls).await.unwrap();
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"{}"))))
                }
            });
            // As servers do: more than so many on one connection wait until others have ended.
            let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            server.max_concurrent_streams(100);
            let _closed = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_do_not_wait_unseen_for_a_place_on_one_http2_connection() {
    const CALLS: usize = 150;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr: SocketAddr = listener.local_addr().unwrap();
    tokio::spawn(answers_once_all_are_there(listener, CALLS));
    let mut settings = config(addr);
    settings.upstreams[0].base_url = format!("https://{addr}/v1");
    settings.upstreams[0].ca_file = Some(file("cert.pem"));
    settings.upstreams[0].learn_limits = false;
    let upstreams = settings.upstreams.clone();
    settings.set_upstreams(upstreams);
    let gateway = start(settings).await;
    let api = gateway.api_addrs()[0];
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            tokio::spawn(async move {
                let mut client = Peer::connect(api).await;
                client.post("/v1/chat/completions", "", CHAT).await;
                client.message(false).await.status()
            })
        })
        .collect();
    for call in calls {
        assert_eq!(within(call).await.unwrap(), 200);
    }
    idle(&gateway).await;
}
