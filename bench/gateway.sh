#!/bin/sh
# CPU per 1,000 calls and latency added: direct, nginx, tidegate with limits on; interleaved, small chat calls.
# Needs nginx. Everything listens on loopback, and is ended at the end.
set -eu
cd "$(dirname "$0")/.."
command -v nginx >/dev/null || { echo "nginx is missing: apt-get install nginx-light"; exit 1; }
cargo build --release -q -p tidegate-cli -p tidegate-bench
bin="${CARGO_TARGET_DIR:-target}/release"
work=$(mktemp -d)
pids=
trap 'for pid in $pids; do kill "$pid" 2>/dev/null || true; done; rm -rf "$work"' EXIT

cat >"$work/scenario.toml" <<'S'
[latency]
first_token = "0s"
tokens_per_second = 1000000000.0
[model."gpt-4o-mini"]
rpm = 1000000000
tpm = 100000000000
S
cat >"$work/nginx.conf" <<N
worker_processes 1; daemon off; pid $work/nginx.pid; error_log $work/nginx.log;
events { worker_connections 1024; }
http {
  access_log off; client_body_temp_path $work/b; proxy_temp_path $work/p; fastcgi_temp_path $work/f; uwsgi_temp_path $work/u; scgi_temp_path $work/s;
  upstream up { server 127.0.0.1:18180; keepalive 64; }
  server { listen 127.0.0.1:18181; location / { proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; } }
}
N
cat >"$work/tidegate.toml" <<T
[limit.account]
per = ["account", "model"]
requests_per_minute = 100000000
tokens_per_minute = 10000000000
requests_per_day = 100000000000
[limit.team]
per = ["organization"]
requests_per_minute = 100000000
tokens_per_minute = 10000000000
requests_per_day = 100000000000
[limit.each_user]
per = ["user"]
requests_per_minute = 100000000
tokens_per_minute = 10000000000
requests_per_day = 100000000000
T
"$bin/tidegate" sim --listen 127.0.0.1:18180 --scenario "$work/scenario.toml" >"$work/sim.out" 2>"$work/sim.err" & sim=$!; pids="$pids $sim"
nginx -c "$work/nginx.conf" 2>/dev/null & nginx=$!; pids="$pids $nginx"
"$bin/tidegate" serve --config "$work/tidegate.toml" --listen 127.0.0.1:18182 --admin-listen 127.0.0.1:18183 \
    --upstream http://127.0.0.1:18180/v1 --state-dir "$work/state" >"$work/serve.out" 2>"$work/serve.err" & gate=$!; pids="$pids $gate"
for port in 18180 18181 18182; do
    tries=0
    until curl -s -o /dev/null "http://127.0.0.1:$port/"; do
        tries=$((tries + 1)); [ "$tries" -lt 100 ] || { cat "$work"/*.err; exit 1; }
        sleep 0.1
    done
done
worker=$(pgrep -P "$nginx")
"$bin/load" "direct=127.0.0.1:18180=$sim" "nginx=127.0.0.1:18181=$worker" "tidegate=127.0.0.1:18182=$gate"
grep VmRSS "/proc/$gate/status" | sed 's/VmRSS:/tidegate resident memory:/'
