#!/bin/bash
# rustix 1.1.6 (crates.io): the user of a socket's peer is not told but taken for an error where the peer's process has no number,
# as those outside of a container's PID namespace have none inside of it.
#
# Linux says process 0 then (SO_PEERCRED), with the user and the group as always. `socket_peercred` answers with a `Pid`, which is
# never 0; so the compiler keeps errors where that field is 0, and the user becomes the error's number: user 54 is "os error
# -54". nix 0.31.4 tells the user. Both are run in this namespace, too, where both tell it.
#
# Needs root, cargo, perl, unshare and setpriv.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
chmod 755 .
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "peer"
version = "0.0.0"
edition = "2024"

[dependencies]
nix = { version = "=0.31.4", features = ["socket"] }
rustix = { version = "=1.1.6", features = ["net"] }
TOML
cat >src/main.rs <<'RUST'
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

fn main() {
    let listener = UnixListener::bind("socket").unwrap();
    std::fs::set_permissions("socket", PermissionsExt::from_mode(0o666)).unwrap();
    let (peer, _) = listener.accept().unwrap();
    match nix::sys::socket::getsockopt(&peer, nix::sys::socket::sockopt::PeerCredentials) {
        Ok(told) => println!("nix: user {}, has a number: {}", told.uid(), told.pid() != 0),
        Err(error) => println!("nix: {error}"),
    }
    match rustix::net::sockopt::socket_peercred(&peer) {
        Ok(told) => println!("rustix: user {}", told.uid.as_raw()),
        Err(error) => println!("rustix: {error}"),
    }
}
RUST
cargo build --quiet --release
# told WHERE COMMAND...: what the program that this command starts is told of a peer of user 54.
told() {
    rm -f socket
    "${@:2}" target/release/peer >told &
    until [ -S socket ] && [ "$(stat -c %a socket)" = 666 ]; do sleep 0.1; done
    setpriv --reuid=54 --regid=54 --clear-groups perl -MSocket -e '
        socket(S, PF_UNIX, SOCK_STREAM, 0) && connect(S, sockaddr_un("socket")) || die;
        <S>'
    wait
    sed "s/^/$1: /" told
}
seen=$(
    told "same namespace" env
    told "another namespace" unshare --pid --fork --kill-child
)
echo "$seen"
want='same namespace: nix: user 54, has a number: true
same namespace: rustix: user 54
another namespace: nix: user 54, has a number: false
another namespace: rustix: Unknown error -54 (os error -54)'
[ "$seen" = "$want" ]
