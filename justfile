# Short names for common commands. `just --list` prints them. Each one calls a script
# or cargo as CI does, so `just` is optional.

# The short run, a step, or the tests with NAME in their path.
test *NAME:
    ./test {{ NAME }}

# Everything, with MINUTES for each randomized test.
test-long MINUTES="1":
    ./test --long --minutes {{ MINUTES }}

# Format, prose and lints, without tests.
check:
    cargo fmt --all
    ./test prose
    ./test lints

# Start a server whose messages are lost when it stops.
serve *ARGS:
    cargo run --release --bin harkd -- --store memory: {{ ARGS }}

# Start the chat in a terminal.
chat *ARGS:
    cargo run --release --bin hark -- {{ ARGS }}

# Generate the gRPC code after a change of grpc/proto/.
generate:
    cargo run -p hark-grpc-generate

# Search TARGET for new inputs.
fuzz TARGET SECONDS="600":
    fuzz/run {{ TARGET }} {{ SECONDS }}

# Measure with the profile of packages.
bench *ARGS:
    cargo build --locked --profile dist -p hark-server -p hark-bench --features hark-server/jemalloc
    target/dist/hark-bench {{ ARGS }}

# The Debian package, binaries, SBOMs and checksums, to target/package. Needs
# `cargo install --locked cargo-deb`.
deb:
    deploy/package/build

# The container image `hark`, by podman or docker.
image ENGINE="podman":
    {{ ENGINE }} build -f deploy/package/Containerfile -t hark .

# Start a cluster of three NATS nodes and two servers on this machine.
cluster *ARGS:
    deploy/cluster/up {{ ARGS }}

# Documentation of all crates, as docs.rs shows it.
doc:
    ./test documentation

# Check the packages of the published crates.
package:
    ./test publish
