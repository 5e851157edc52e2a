#!/usr/bin/env bash
# `make dev` and `make dev-stop`: the real servers on this machine, for `chaintap run` by hand.
#
# start   Starts what is not running yet, each on its fixed loopback port (below; DEV_…_PORT chooses another), creates
#         the queues, loads the tokens, and prints the environment for `chaintap run` on standard output, so that
#         `eval "$(make -s dev)"` sets it. Started twice, it changes nothing.
# stop    Ends those, and only those: a process is told by its number and its start time together.
#
# Data, logs and process numbers are in .dev/run/; `make clean-dev` deletes them. The queues are in memory only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly run=$PWD/.dev/run
readonly redis_port=${DEV_REDIS_PORT:-16379}
readonly mongo_port=${DEV_MONGO_PORT:-17017}
readonly sqs_port=${DEV_SQS_PORT:-19324}
readonly node_port=${DEV_NODE_PORT:-18545}
readonly database=chaintap
readonly queue=chaintap-transfers
readonly tokens=tests/support/dev-tokens.json
readonly sqs=http://127.0.0.1:$sqs_port

say() { printf '%s\n' "$*" >&2; }
die() {
    say "error: $1"
    say " mend: $2"
    exit 1
}

# Clock ticks between the machine's start and the process's: with the number it names one process for good. Nothing for
# a process that has ended, whether or not its parent has noticed (Z).
started_at() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" { print $20 }'; }

# The number of a server that `start` started and that still runs; nothing otherwise.
running() {
    local pid at
    read -r pid at 2>/dev/null <"$run/$1.pid" || return 0
    [ -n "$at" ] && [ "$(started_at "$pid")" = "$at" ] && printf '%s\n' "$pid"
    return 0
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# server NAME PORT COMMAND…
server() {
    local name=$1 port=$2 pid
    shift 2
    pid=$(running "$name")
    if [ -n "$pid" ]; then
        say "$name: runs already (process $pid, port $port)"
        return
    fi
    ! listening "$port" ||
        die "port $port, which $name wants, is taken by another program" "end it, or set DEV_${name^^}_PORT"
    setsid "$@" </dev/null >"$run/$name.log" 2>&1 &
    pid=$!
    disown
    for _ in $(seq 200); do
        [ -n "$(started_at "$pid")" ] || break
        printf '%s %s\n' "$pid" "$(started_at "$pid")" >"$run/$name.pid"
        if listening "$port"; then
            say "$name: started (process $pid, port $port)"
            return
        fi
        sleep 0.1
    done
    tail -n 20 "$run/$name.log" >&2 || true
    die "$name did not come up on port $port" "read its log above, all of it in .dev/run/$name.log"
}

start_servers() {
    mkdir -p "$run/redis" "$run/mongo"
    server redis "$redis_port" redis-server --bind 127.0.0.1 --port "$redis_port" --dir "$run/redis" \
        --save '' --appendonly yes --maxmemory-policy noeviction
    server mongo "$mongo_port" .dev/venv/bin/secantusd-py --host 127.0.0.1 --port "$mongo_port" \
        --storage-path "$run/mongo" --sync-on-commit --log-level WARNING
    # fauxqs' own command listens on every address; its library can be told not to.
    server sqs "$sqs_port" .dev/bin/node --input-type=module --eval "
        import { buildApp } from '$(cd -P .dev && pwd)/node_modules/fauxqs/dist/app.js';
        const app = buildApp({ logger: false, defaultRegion: 'us-east-1' });
        await app.listen({ host: '127.0.0.1', port: $sqs_port });"
    server node "$node_port" .dev/bin/anvil --host 127.0.0.1 --port "$node_port" --chain-id 31337 --block-time 1 \
        --state "$run/node.json" --silent
}

export_aws() {
    export AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_ENDPOINT_URL_SQS=$sqs
}

# Creating a queue that is there already gives its URL, which is what is printed.
create_queues() {
    .dev/venv/bin/python - "$queue" <<'PYTHON'
import os, sys

import boto3

name, sqs = sys.argv[1], boto3.client("sqs", region_name=os.environ["AWS_REGION"])
sqs.create_queue(QueueName=name + ".fifo", Attributes={"FifoQueue": "true"})
print(sqs.create_queue(QueueName=name)["QueueUrl"])
PYTHON
    say "sqs: queues $queue and $queue.fifo"
}

load_tokens() {
    CHAIN_ID=31337 MONGODB_URI=$(mongo_uri) MONGODB_DATABASE=$database \
        cargo run --quiet --locked -- tokens import "$tokens" >&2
}

mongo_uri() { printf 'mongodb://127.0.0.1:%s/?directConnection=true' "$mongo_port"; }

print_environment() {
    cat <<ENVIRONMENT
export CHAIN_ID=31337
export WEB3_PROVIDER=ws://127.0.0.1:$node_port,http://127.0.0.1:$node_port
export REDIS_URL=redis://127.0.0.1:$redis_port
export MONGODB_URI='$(mongo_uri)'
export MONGODB_DATABASE=$database
export TRANSFER_HANDLER_SQS=$queue_url
export AWS_REGION=$AWS_REGION
export AWS_ENDPOINT_URL_SQS=$AWS_ENDPOINT_URL_SQS
export AWS_ACCESS_KEY_ID=$AWS_ACCESS_KEY_ID
export AWS_SECRET_ACCESS_KEY=$AWS_SECRET_ACCESS_KEY
ENVIRONMENT
}

stop_servers() {
    local name pid
    for name in "$@"; do
        pid=$(running "$name")
        [ -z "$pid" ] || kill "$pid"
    done
    for name in "$@"; do wait_for_end "$name"; done
}

wait_for_end() {
    [ -e "$run/$1.pid" ] || return 0
    for _ in $(seq 100); do
        if [ -z "$(running "$1")" ]; then
            rm -f "$run/$1.pid"
            say "$1: ended"
            return
        fi
        sleep 0.1
    done
    die "$1 did not end within 10 s" "look at .dev/run/$1.log, then: kill -9 $(running "$1")"
}

case ${1:-} in
start)
    start_servers
    export_aws
    queue_url=$(create_queues)
    load_tokens
    print_environment
    ;;
stop)
    stop_servers node sqs mongo redis
    ;;
*)
    die "unknown command: ${1:-none}" "one of: start, stop"
    ;;
esac
