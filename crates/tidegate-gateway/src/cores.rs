//! Decides which thread serves a connection: one thread for each core, with a runtime and upstream connections of its own.
//!
//! All that a call waits for wakes on the thread that it runs on: no other thread is woken to look for work, which costs
//! a gateway more than its decisions do.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

thread_local! {
    static CORE: Cell<usize> = const { Cell::new(0) };
}

/// How many threads serve connections in each gateway of this process.
pub(crate) fn count() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Which of them this thread is; the first, if it is none.
pub(crate) fn current() -> usize {
    CORE.get()
}

/// The threads of one gateway, if it has any. They end when it is dropped, and whatever they still serve with them.
#[derive(Debug)]
pub(crate) struct Cores {
    cores: Vec<Core>,
    _alive: watch::Sender<()>,
}

#[derive(Debug)]
struct Core {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
}

impl Cores {
    /// No threads: connections are served on the runtime that they are accepted on.
    pub(crate) fn none() -> Self {
        Self { cores: Vec::new(), _alive: watch::Sender::default() }
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// The system has none left.
    pub(crate) fn start() -> io::Result<Self> {
        let (alive, _) = watch::channel(());
        let start = |index: usize| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let mut gone = alive.subscribe();
            thread::Builder::new().name(format!("core-{index}")).spawn(move || {
                CORE.set(index);
                // Nothing is ever sent: it ends with an error, when the sender has gone.
                runtime.block_on(async { while gone.changed().await.is_ok() {} });
            })?;
            Ok(Core { runtime: handle, connections: Arc::default() })
        };
        let cores = (0..count()).map(start).collect::<io::Result<_>>()?;
        Ok(Self { cores, _alive: alive })
    }

    /// Serves `stream` with `serve` on the thread that has the fewest connections.
    pub(crate) fn serve<F>(&self, stream: TcpStream, serve: impl FnOnce(TcpStream) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(core) = self.cores.iter().min_by_key(|core| core.connections.load(Ordering::Relaxed)) else {
            tokio::spawn(serve(stream));
            return;
        };
        let counted = Counted::new(&core.connections);
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(error) => return tracing::warn!("a connection cannot be served: {error}"),
        };
        core.runtime.spawn(async move {
            let _counted = counted;
            // It is the runtime of this thread that watches it from now on.
            match TcpStream::from_std(stream) {
                Ok(stream) => serve(stream).await,
                Err(error) => tracing::warn!("a connection cannot be served: {error}"),
            }
        });
    }
}

/// Counts a connection until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(connections: &Arc<AtomicUsize>) -> Self {
        connections.fetch_add(1, Ordering::Relaxed);
        Self(connections.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn connections_spread_evenly_over_the_cores_and_end_with_them() {
        let cores = Cores::start().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (served, mut on_cores) = mpsc::unbounded_channel();
        let mut clients = Vec::new();
        let mut counts = vec![0; count()];
        for _ in 0..3 * count() {
            clients.push(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
            let served = served.clone();
            cores.serve(listener.accept().await.unwrap().0, |stream| async move {
                served.send(current()).unwrap();
                stream.readable().await.unwrap();
            });
            counts[on_cores.recv().await.unwrap()] += 1;
        }
        assert_eq!(counts, vec![3; count()]);
        drop((cores, served));
        assert_eq!(on_cores.recv().await, None, "what they served has ended");
    }
}
