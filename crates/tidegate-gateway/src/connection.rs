//! Decides how one connection is served: its bounds against slow and silent clients, and how it ends when the process does.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;

use crate::reply::ReplyBody;
use crate::shared::Phase;

/// A request's head must be there within this; an unused connection is closed after it. Longer than clients keep theirs (httpx
/// 5 s, undici 4 s, Go 90 s is the exception), so that the client closes first and no request meets a closing connection.
const HEAD_WITHIN: Duration = Duration::from_secs(100);
/// A client that reads nothing for so long has its connection closed, and its call's reservation given back.
const STALLED_AFTER: Duration = Duration::from_secs(60);
const TLS_WITHIN: Duration = Duration::from_secs(10);
/// Bounds a request's head, and what of a reply is buffered for a client that reads slowly.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// Serves `stream` with `answer` until it ends, or the process does.
pub(crate) async fn serve<A, F>(stream: TcpStream, tls: Option<TlsAcceptor>, phase: watch::Receiver<Phase>, answer: A)
where
    A: Fn(IpAddr, Request<Incoming>) -> F,
    F: Future<Output = Result<Response<ReplyBody>, Infallible>>,
{
    send_at_once(&stream);
    let Ok(local) = stream.local_addr().as_ref().map(SocketAddr::ip) else { return };
    match tls {
        None => serve_io(Guarded::new(stream), local, phase, answer).await,
        Some(acceptor) => match tokio::time::timeout(TLS_WITHIN, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => serve_io(Guarded::new(stream), local, phase, answer).await,
            Ok(Err(error)) => tracing::debug!("TLS handshake failed: {error}"),
            Err(_) => tracing::debug!("TLS handshake timed out"),
        },
    }
}

/// A small event must not wait for the acknowledgement of the one before.
fn send_at_once(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("cannot set TCP_NODELAY: {error}");
    }
}

async fn serve_io<S, A, F>(stream: Guarded<S>, local: IpAddr, mut phase: watch::Receiver<Phase>, answer: A)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(IpAddr, Request<Incoming>) -> F,
    F: Future<Output = Result<Response<ReplyBody>, Infallible>>,
{
    let service = service_fn(move |request| answer(local, request));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut serving = pin!(serving);
    loop {
        tokio::select! {
            biased;
            served = serving.as_mut() => {
                if let Err(error) = served {
                    tracing::debug!("connection ended: {error}");
                }
                return;
            }
            changed = phase.changed() => {
                let now = *phase.borrow_and_update();
                match now {
                    Phase::Serving | Phase::Draining if changed.is_ok() => {}
                    Phase::Closing if changed.is_ok() => serving.as_mut().graceful_shutdown(),
                    _ => return,
                }
            }
        }
    }
}

/// A stream that fails once nothing could be written to it for too long.
#[derive(Debug)]
struct Guarded<S> {
    inner: S,
    /// Set while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Guarded<S> {
    const fn new(inner: S) -> Self {
        Self { inner, stalled: None }
    }

    fn wrote<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let deadline = || Box::pin(tokio::time::sleep_until(Instant::now() + STALLED_AFTER));
        let stalled = self.stalled.get_or_insert_with(deadline);
        stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.wrote(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.wrote(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        self.wrote(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_is_written_to_a_caller_is_sent_at_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        send_at_once(&stream);
        assert!(stream.nodelay().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_is_given_up_and_one_that_reads_slowly_is_not() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut guarded = Guarded::new(near);
        let writing = tokio::spawn(async move {
            let slow = guarded.write_all(&[0; 48]).await;
            (slow.is_ok(), guarded.write_all(&[0; 48]).await)
        });
        let mut buffer = [0; 16];
        for _ in 0..3 {
            tokio::time::sleep(STALLED_AFTER / 2).await;
            far.read_exact(&mut buffer).await.unwrap();
        }
        let stopped_at = Instant::now();
        let (slow, stopped) = writing.await.unwrap();
        assert!(slow);
        assert_eq!(stopped.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(stopped_at.elapsed() <= STALLED_AFTER + STALLED_AFTER / 2);
    }
}
