#!/bin/sh
# Time and instructions of one decision. Needs valgrind for the instructions.
set -eu
cd "$(dirname "$0")/.."
cargo build --release -q -p tidegate-bench --bin decision
bin="${CARGO_TARGET_DIR:-target}/release/decision"
"$bin"
command -v valgrind >/dev/null || { echo "valgrind is missing: no instruction counts"; exit 0; }
count() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$bin" "$1" "$2" 2>&1 | sed -n 's/.*Collected : //p'
}
for what in gate windows governor; do
    # The difference of two runs is free of what starting costs.
    few=$(count "$what" 20000)
    many=$(count "$what" 40000)
    echo "$what: $(((many - few) / 20000)) instructions each"
done
