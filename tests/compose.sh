#!/usr/bin/env bash
# docker-compose.yml, from nothing to torn down: builds, starts, waits for health, walks tests/compose_scenario.py through
# the load balancer (one gateway is stopped under way), looks into the logs, and removes everything it made.
#
#   tests/compose.sh                          needs Docker with compose (or docker-compose 1.29), bash, Python 3.9
#   SIBLING_PORT=9000 tests/compose.sh        by default, a free port
#   COMPOSE_PROJECT_NAME=x tests/compose.sh   by default, one of its own
#   tests/compose.sh --no-build               with the image sibling-sockets as it is
#
# Exits 0 only if all of it held.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n%s\n' "$*"; }
fail() { printf 'FAIL  %s\n' "$*" >&2; exit 1; }

if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
"${compose[@]}" version >/dev/null || fail "neither 'docker compose' nor 'docker-compose' is here"
docker info >/dev/null 2>&1 || fail "the Docker daemon does not answer"

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
random() { python3 -c 'import secrets; print(secrets.token_hex(32))'; }
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-siblingtest$$}
export SIBLING_PORT=${SIBLING_PORT:-$(free_port)}
export SIBLING_PUBLIC_URL=http://127.0.0.1:$SIBLING_PORT
export SIBLING_DEFAULT_PUBLIC=off SIBLING_ANONYMOUS=off

say "Without its secrets it must not start"
for missing in SIBLING_SECRET SIBLING_ADMIN_KEY; do
  # Empty, not unset: a developer's own .env must not help out.
  if said=$(SIBLING_SECRET=x SIBLING_ADMIN_KEY=x env "$missing=" "${compose[@]}" config 2>&1); then fail "compose takes an empty $missing"; fi
  grep -q "see the first lines of docker-compose.yml" <<<"$said" || fail "without $missing it says only: $said"
  echo "ok    without $missing: refused, and told where to look"
done
SIBLING_SECRET=$(random) SIBLING_ADMIN_KEY=$(random)
export SIBLING_SECRET SIBLING_ADMIN_KEY

scratch=$(mktemp -d)
ended() {
  status=$?
  trap - EXIT
  if [ "$status" != 0 ]; then
    say "It failed. The last of the logs:"
    "${compose[@]}" ps || true
    "${compose[@]}" logs --no-color --tail=60 || true
  fi
  say "Taking it down"
  "${compose[@]}" down --volumes --remove-orphans --timeout 20 || status=1
  rm -rf "$scratch"
  [ "$status" = 0 ] && say "All of it held." || say "FAILED"
  exit "$status"
}
trap ended EXIT
trap 'exit 130' INT TERM

say "Building and starting (project $COMPOSE_PROJECT_NAME, port $SIBLING_PORT)"
if [ "${1:-}" != --no-build ]; then "${compose[@]}" build; fi
"${compose[@]}" up -d

containers() { docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" ${1:+--filter "label=com.docker.compose.service=$1"}; }
state() { docker inspect --format '{{.Name}} {{.State.Status}} {{.State.Health.Status}}' $(containers "${1:-}"); }
wait_healthy() { # how many containers there must be, all of them healthy
  local deadline=$((SECONDS + 90))
  until [ "$(state | grep -c ' running healthy$')" = "$1" ]; do
    [ $SECONDS -lt $deadline ] || { state >&2; fail "not $1 healthy containers within 90 s"; }
    sleep 0.5
  done
  state | sed 's/^/ok    /'
}
wait_healthy 5

say "How they run"
for container in $(containers); do
  read -r name user readonly memory < <(docker inspect --format '{{.Name}} {{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Memory}}' "$container")
  [ "$readonly" = true ] || fail "$name may write to its root file system"
  [ "$memory" -gt 0 ] || fail "$name has no memory limit"
  uid=$(docker exec "$container" id -u)
  [ "$uid" != 0 ] || fail "$name runs as root"
  docker exec "$container" grep -q '^NoNewPrivs:.*1' /proc/1/status || fail "$name may gain privileges"
  docker exec "$container" grep -q '^CapBnd:.*0000000000000000' /proc/1/status || fail "$name has capabilities"
  echo "ok    $name: uid $uid, read-only, no capabilities, no new privileges, $((memory / 1048576)) MiB"
done
[ -z "$(docker port "$(containers redis)")" ] || fail "Redis is published"
echo "ok    Redis is not published"

python=python3
if ! python3 -c 'import websockets.asyncio.client, sys; sys.exit(int(websockets.__version__.split(".")[0]) < 15)' 2>/dev/null; then
  say "Fetching the websockets module"
  python3 -m venv "$scratch/venv"
  "$scratch/venv/bin/pip" install --quiet --disable-pip-version-check 'websockets>=15'
  python=$scratch/venv/bin/python
fi

# The first gateway of the list, whichever node that is; it must have ended by itself, with 0, before Docker loses patience.
cat >"$scratch/stop-node" <<STOP
#!/usr/bin/env bash
set -euo pipefail
container=$(containers gateway | head -n 1)
docker stop "\$container" >/dev/null
code=\$(docker inspect --format '{{.State.ExitCode}}' "\$container")
[ "\$code" = 0 ] || { echo "FAIL  the stopped gateway exited with \$code" >&2; exit 1; }
echo "ok    docker stop: the gateway drained and exited with 0"
STOP
chmod +x "$scratch/stop-node"
"$python" tests/compose_scenario.py --url "$SIBLING_PUBLIC_URL" --admin-key "$SIBLING_ADMIN_KEY" --nodes 3 --stop-node "$scratch/stop-node"

say "The stopped gateway comes back"
docker start $(containers gateway) >/dev/null
wait_healthy 5

say "The logs"
"${compose[@]}" logs --no-color >"$scratch/logs"
for secret in "$SIBLING_SECRET" "$SIBLING_ADMIN_KEY" 'ticket=' 'eyJ[A-Za-z0-9_-]\{8,\}\.'; do
  ! grep -q -- "$secret" "$scratch/logs" || fail "a secret or a ticket is in the logs: $(grep -m 1 -- "$secret" "$scratch/logs" | cut -c 1-80)..."
done
echo "ok    $(wc -l <"$scratch/logs") lines, without a secret, an admin key or a ticket"
grep -q 'is DOWN, reason: Layer7 wrong status, code: 503' "$scratch/logs" || fail "the load balancer did not see /readyz of the draining gateway turn 503"
echo "ok    the load balancer saw the draining gateway's /readyz turn 503 and took it out"
! grep -i 'panicked at' "$scratch/logs" || fail "a gateway panicked"
echo "ok    no panic"
