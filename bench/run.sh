#!/bin/sh
# One job by tidegate run, by a plain async loop with the official Python SDK, and by LiteLLM's Router, each against a
# simulator of its own: how much longer than the limits allow it took, 429s, failures. Needs python3 and its registry. The
# versions are those of the figures in docs/benchmarks.
set -eu
cd "$(dirname "$0")/.."
cargo build --release -q -p tidegate-cli
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
target=${CARGO_TARGET_DIR:-target}
[ -x "$target/bench-venv/bin/python" ] || python3 -m venv "$target/bench-venv"
"$target/bench-venv/bin/pip" install -q openai==3.57.0 litellm==1.110.2
"$target/bench-venv/bin/python" bench/run.py "$target/release/tidegate" "$work" "$@"
