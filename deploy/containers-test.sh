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

until_ready() { # URL: until it is answered with success, at most a quarter of an hour on a busy machine
    for _ in $(seq 450); do
        if curl --silent --fail --max-time 5 --output /dev/null "$1"; then return; fi
        sleep 2
    done
    echo "containers-test: $1 was not answered" >&2
    "${compose[@]}" logs --tail 50 >&2
    return 1
}

draw() { # PROMPT: a picture by the gateway alone, as a client whose TLS ended before it
    local answer link
    answer="$(curl --silent --show-error --fail-with-body --max-time 330 "$url/v1/images/generations" \
        --header 'Content-Type: application/json' --header 'X-Forwarded-Proto: https' \
        --data "{\"prompt\": \"$1\", \"response_format\": \"url\"}")" || { echo "$answer" >&2; return 1; }
    link="$(grep --only-matching '"url":"https://[^"]*' <<<"$answer" | cut --delimiter '"' --fields 4)"
    curl --silent --show-error --fail --max-time 30 "$url/${link#https://*/}" |
        { head --bytes 4; cat >/dev/null; } | grep --quiet PNG # read to its end, or curl complains
    echo "containers-test: drew '$1'"
}

bring_up() { # OPTION…
    if "${compose[@]}" up --detach --no-build "$@"; then return; fi
    "${compose[@]}" logs --tail 50 >&2
    return 1
}

healthy() { # SERVICE NUMBER: wait until so many of its containers run and are healthy
    local states=""
    for _ in $(seq 450); do
        states="$("${compose[@]}" ps --quiet "$1" | xargs --no-run-if-empty docker inspect \
            --format '{{.State.Status}} {{.State.Health.Status}}' | sort | uniq --count | xargs)"
        if [ "$states" = "$2 running healthy" ]; then
            echo "containers-test: $1: $states"
            return
        fi
        sleep 2
    done
    echo "containers-test: $1 should be $2 healthy containers, and is: $states" >&2
    "${compose[@]}" logs --tail 50 "$1" >&2
    return 1
}

contained() { # no container writes its root, has capabilities, or is root
    "${compose[@]}" ps --quiet | xargs docker inspect --format \
        '{{.Name}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.Config.User}}' |
        while read -r name read_only dropped user; do
            if [ "$read_only $dropped" != "true [ALL]" ] || [[ "$user" =~ ^(0|root)?(:|$) ]]; then
                echo "containers-test: $name is not contained: $read_only $dropped $user" >&2
                return 1
            fi
        done
}

upgrade_api() { # new replicas beside the old ones, then the old ones end; as docs/deployment.md says
    local old asked=0
    old="$("${compose[@]}" ps --quiet api)"
    bring_up --no-deps --no-recreate --scale api=4 api
    healthy api 4
    # shellcheck disable=SC2086 # one word for each container
    docker stop $old >/dev/null &
    local stopping=$!
    while kill -0 "$stopping" 2>/dev/null; do
        curl --silent --show-error --fail --max-time 30 --output /dev/null "$url/v1/jobs?limit=1"
        asked=$((asked + 1))
    done
    wait "$stopping"
    # shellcheck disable=SC2086
    docker rm $old >/dev/null
    echo "containers-test: replaced both replicas; $asked requests meanwhile, 0 failed"
}

jobs_known() { # how many jobs the service tells of
    curl --silent --show-error --fail --max-time 10 "$url/v1/jobs?limit=100" |
        grep --only-matching '"created_at"' | wc --lines
}

"${compose[@]}" config >/dev/null
if [ "${BUILD:-1}" = 1 ]; then "${compose[@]}" build; fi
bring_up
for image in $("${compose[@]}" ps --quiet api worker | xargs docker inspect --format '{{.Image}}' | sort --unique); do
    docker image inspect --format 'containers-test: {{join .RepoTags ", "}}: {{.Size}} bytes' "$image"
done
until_ready "$url/readyz"
draw "a red apple"
for service in gateway:1 api:2 worker:1 redis:1; do healthy "${service%:*}" "${service#*:}"; done
contained

upgrade_api
healthy api 2
draw "a violet grape"

docker kill "$("${compose[@]}" ps --quiet api | head --lines 1)" >/dev/null
echo "containers-test: killed one of two replicas"
draw "a green pear"

bring_up --scale api=3 --scale worker=2
healthy api 3
healthy worker 2
draw "a yellow lemon"

before="$(jobs_known)"
"${compose[@]}" kill redis
bring_up --scale api=3 --scale worker=2
until_ready "$url/readyz"
after="$(jobs_known)"
echo "containers-test: killed Redis; $before jobs were known before, $after after"
if [ "$before" -lt 4 ] || [ "$after" != "$before" ]; then exit 1; fi
draw "a blue plum"
echo "containers-test: passed"
