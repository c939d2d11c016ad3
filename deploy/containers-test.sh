#!/usr/bin/env bash
# Builds both images, runs the compose file, draws through the gateway, kills a replica, scales.
# The engine is that of DOCKER_HOST; BASE_URL is where the gateway is reached from here; BUILD=0
# takes images of the project avocat-check that are there.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! docker info >/dev/null 2>&1; then
    echo "containers-test: skipped, no container engine answers (set DOCKER_HOST or start one)"
    exit 0
fi
if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
elif command -v docker-compose >/dev/null; then
    compose=(docker-compose)
else
    echo "containers-test: skipped, there is an engine but no docker compose"
    exit 0
fi
compose+=(--project-name avocat-check)
export DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1 AVOCAT_PORT="${AVOCAT_PORT:-18000}"
export AVOCAT_ALLOW_ANONYMOUS=true # its gateway is published on this machine alone
url="${BASE_URL:-http://127.0.0.1:$AVOCAT_PORT}"
trap '"${compose[@]}" down --volumes --timeout 60' EXIT

until_ready() { # URL: until it is answered with success, at most five minutes
    for _ in $(seq 150); do
        if curl --silent --fail --max-time 5 --output /dev/null "$1"; then return; fi
        sleep 2
    done
    echo "containers-test: $1 was not answered" >&2
    "${compose[@]}" logs --tail 50 >&2
    return 1
}

draw() { # PROMPT: through the gateway; the answer must hold a picture
    curl --silent --show-error --fail --max-time 300 --header 'Content-Type: application/json' \
        --data "{\"prompt\": \"$1\"}" "$url/v1/images/generations" | grep --quiet '"b64_json"'
    echo "containers-test: drew '$1'"
}

"${compose[@]}" config --quiet
if [ "${BUILD:-1}" = 1 ]; then "${compose[@]}" build; fi
"${compose[@]}" images || true
"${compose[@]}" up --detach --no-build
until_ready "$url/readyz"
draw "a red apple"

docker kill "$("${compose[@]}" ps --quiet api | head --lines 1)"
draw "a green pear"

"${compose[@]}" up --detach --no-build --scale api=3 --scale worker=2
until_ready "$url/readyz"
draw "a yellow lemon"
echo "containers-test: passed"
