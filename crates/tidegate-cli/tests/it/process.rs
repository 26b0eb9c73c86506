//! Runs the binary in an empty directory and environment, and talks to it over plain HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

/// Longer than anything takes here; only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// An empty place to run in: home, working directory and environment.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file there.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(args).current_dir(self.path()).env_clear().env("HOME", self.path()).stdin(Stdio::null());
        command
    }

    /// Runs it to its end, which must come by itself.
    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        Running::spawn(self.command(args)).end()
    }

    /// Starts it and waits for its first line on standard output.
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        Running::start(self.command(args))
    }
}

/// A run that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A run under way; killed when dropped.
pub(crate) struct Running {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
    logs: Receiver<String>,
    /// Held, it keeps standard error from being read.
    unread: Option<mpsc::Sender<()>>,
    seen: String,
    /// The first line on standard output.
    pub(crate) ready: String,
}

impl Running {
    /// Starts it without waiting for anything.
    pub(crate) fn spawn(command: Command) -> Self {
        let mut running = Self::spawn_unread(command);
        running.read_logs();
        running
    }

    /// Starts it with a pipe as standard error that is not read before [`Running::read_logs`].
    pub(crate) fn spawn_unread(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (send, logs) = mpsc::channel();
        let (unread, read) = mpsc::channel();
        // Ends with the pipe, or with whoever listens.
        thread::spawn(move || {
            let _ = read.recv();
            stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line))
        });
        Self { child, stdout: Some(stdout), logs, unread: Some(unread), seen: String::new(), ready: String::new() }
    }

    /// Reads standard error from now on.
    pub(crate) fn read_logs(&mut self) {
        self.unread = None;
    }

    pub(crate) fn start(command: Command) -> Self {
        Self::spawn(command).when_ready()
    }

    /// Waits for its first line on standard output.
    pub(crate) fn when_ready(self) -> Self {
        let mut running = self;
        let mut stdout = running.stdout.take().unwrap();
        let (stdout, ready) = in_time(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            (stdout, line)
        });
        running.stdout = Some(stdout);
        running.ready = ready.trim_end().to_owned();
        if running.ready.is_empty() {
            let ended = running.end();
            panic!("ended before it was ready: {ended:?}");
        }
        running
    }

    /// Its process.
    pub(crate) fn id(&self) -> String {
        self.child.id().to_string()
    }

    /// The value of `name=…` in the ready line.
    pub(crate) fn announced(&self, name: &str) -> String {
        let prefix = format!("{name}=");
        let found = self.ready.split(' ').find_map(|word| word.strip_prefix(&prefix));
        found.unwrap_or_else(|| panic!("no {name} in {:?}", self.ready)).to_owned()
    }

    /// The next line on standard output.
    pub(crate) fn line(&mut self) -> String {
        let mut stdout = self.stdout.take().unwrap();
        let (stdout, line) = in_time(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            (stdout, line)
        });
        self.stdout = Some(stdout);
        line
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until it has logged a line with `text` in it.
    pub(crate) fn logs(&mut self, text: &str) {
        loop {
            let line = self.logs.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("it never logged {text:?} but {}", self.seen));
            let found = line.contains(text);
            self.seen += &line;
            self.seen += "\n";
            if found {
                return;
            }
        }
    }

    /// Waits for its end while nobody reads its standard error: the exit code.
    pub(crate) fn wait(mut self) -> Option<i32> {
        // It closes when the process ends.
        let mut stdout = self.stdout.take().unwrap();
        in_time(move || stdout.read_to_string(&mut String::new()).unwrap());
        self.child.wait().unwrap().code()
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> Ended {
        let mut stdout = self.stdout.take().unwrap();
        // Both pipes close when the process ends.
        let stdout = in_time(move || {
            let mut rest = String::new();
            stdout.read_to_string(&mut rest).unwrap();
            rest
        });
        while let Ok(line) = self.logs.recv_timeout(PATIENCE) {
            self.seen += &line;
            self.seen += "\n";
        }
        Ended { code: self.child.wait().unwrap().code(), stdout, stderr: std::mem::take(&mut self.seen) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone is just as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `work` comes to, unless it hangs.
pub(crate) fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(work()));
    receive.recv_timeout(PATIENCE).expect("it hangs")
}

/// One HTTP exchange: the status and the whole reply, head and body.
pub(crate) fn http(method: &str, url: &str, headers: &[&str], body: &str) -> (u16, String) {
    let rest = url.strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = format!("{method} /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for header in headers {
        request += header;
        request += "\r\n";
    }
    request += &format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    let reply = String::from_utf8_lossy(&reply).into_owned();
    let status = reply.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no status in {reply:?}")), reply)
}

/// A chat completion, as a client would send it.
pub(crate) fn chat(base_url: &str, headers: &[&str]) -> (u16, String) {
    let body = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hello"}],"max_tokens":16}"#;
    http("POST", &format!("{base_url}/chat/completions"), headers, body)
}
