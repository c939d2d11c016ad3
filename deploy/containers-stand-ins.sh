#!/usr/bin/env bash
# containers-test.sh where no registry of images is reached: as root, on Debian, with
#   apt install docker.io docker-compose debootstrap iptables iproute2
# The images that the Dockerfile and the compose file name are stood in for by Debian's packages
# under the same names, in an engine of its own; nothing of this machine's other engine is touched.
# STATE keeps bases and layers for the next time; PIP_FIND_LINKS, if it is a folder, is where torch
# is looked for.
set -euo pipefail
cd "$(dirname "$0")/.."
STATE="${STATE:-/var/tmp/avocat-stand-ins}"
MIRROR="${MIRROR:-http://deb.debian.org/debian}"
WHEELS_PORT="${WHEELS_PORT:-18009}"
export DOCKER_HOST="unix://$STATE/docker.sock" DOCKER_BUILDKIT=1
export PATH="/usr/bin:$PATH" # Debian's client speaks to Debian's daemon
mkdir -p "$STATE"
echo "containers-stand-ins: these are stand-ins made of Debian packages, not the images of Docker Hub;"
echo "containers-stand-ins: sizes and versions of the bases are those of the stand-ins"

started=()
stop_engine() {
    if [ -s "$STATE/docker.pid" ]; then
        local pid
        pid="$(cat "$STATE/docker.pid")"
        kill "$pid" 2>/dev/null || true
        while kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
        rm -f "$STATE/docker.pid"
    fi
}
stop_all() {
    stop_engine
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
}
trap stop_all EXIT

start_engine() { # COMMAND… OPTION…: waits until it answers
    "$@" --host "$DOCKER_HOST" --pidfile "$STATE/docker.pid" --data-root "$STATE/data" \
        --exec-root "$STATE/run" --storage-driver overlay2 >>"$STATE/docker.log" 2>&1 &
    for _ in $(seq 100); do
        if docker info >/dev/null 2>&1; then return; fi
        sleep 0.3
    done
    tail -20 "$STATE/docker.log" >&2
    return 1
}

bootstrap() { # SUITE PACKAGES: an image of Debian's minimal system, named stand-in:SUITE
    if docker image inspect "stand-in:$1" >/dev/null 2>&1; then return; fi
    local root="$STATE/root-$1" script=/usr/share/debootstrap/scripts
    rm -rf "$root"
    debootstrap --variant=minbase --include="$2" "$1" "$root" "$MIRROR" \
        "$(if [ -e "$script/$1" ]; then echo "$script/$1"; else echo "$script/sid"; fi)" >"$STATE/debootstrap-$1.log"
    # What this machine reaches its package registries by.
    install -D /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    if [ -e /etc/pip.conf ]; then cp /etc/pip.conf "$root/etc/pip.conf"; fi
    apt-config dump | grep '^Acquire::' >"$root/etc/apt/apt.conf.d/90this-machine"
    rm -rf "$root/var/cache/apt/archives"/*.deb "$root/var/lib/apt/lists"/*
    rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
    for program in python3 pip3; do
        if [ -e "$root/usr/bin/$program" ]; then
            ln -s "/usr/bin/$program" "$root/usr/local/bin/${program%3}"
        fi
    done
    tar -C "$root" -c . | docker import --change 'CMD ["bash"]' - "stand-in:$1" >/dev/null
    rm -rf "$root"
}

stand_in() { # IMAGE SUITE DOCKERFILE: an image of this name on that suite
    docker image inspect "$1" >/dev/null 2>&1 ||
        printf 'FROM stand-in:%s\n%b' "$2" "$3" |
        docker build --quiet --network host --tag "$1" - >/dev/null
    echo "containers-stand-ins: $1 stands in for the image of that name"
}

install="apt-get update && apt-get install -y --no-install-recommends"
start_engine dockerd --iptables=false --ip6tables=false --ip-masq=false --ip-forward=false --bridge=none
bootstrap bookworm python3,python3-venv,python3-pip,ca-certificates
docker tag stand-in:bookworm python:3.11-slim
echo "containers-stand-ins: python:3.11-slim stands in for the image of that name"
bootstrap forky ca-certificates # its nginx looks up replicas again and again, bookworm's does not
stand_in redis:7-alpine bookworm "RUN $install redis-server && install -d -o 999 -g 1000 /data\nWORKDIR /data"
stand_in nginx:1.28-alpine forky "RUN $install nginx-light wget"

pip_arguments=""
if [ -d "${PIP_FIND_LINKS:-}" ]; then
    python3 -m http.server --bind 127.0.0.1 --directory "$PIP_FIND_LINKS" "$WHEELS_PORT" \
        >/dev/null 2>&1 &
    started+=($!)
    pip_arguments="--find-links http://127.0.0.1:$WHEELS_PORT/"
fi
for target in api worker; do
    docker build --network host --target "$target" --tag "avocat-$target:0.1.0" --progress plain \
        --build-arg TORCH_INDEX= --build-arg PIP_EXTRA_ARGS="$pip_arguments" \
        --build-arg REVISION="$(git rev-parse HEAD)" . >"$STATE/build-$target.log" 2>&1 ||
        { tail -40 "$STATE/build-$target.log" >&2; exit 1; }
done
stop_engine

# The same images in a network of their own, where bridges and published ports are allowed.
# shellcheck disable=SC2016 # expanded in there
start_engine unshare --net bash -c 'ip link set lo up; sysctl -qw net.ipv4.ip_forward=1; exec dockerd "$@"' dockerd
BUILD=0 nsenter --net="/proc/$(cat "$STATE/docker.pid")/ns/net" bash deploy/containers-test.sh
