#!/usr/bin/env bash
# Runs an MLflow server on the head for as long as Ray runs there, and starts it again if it dies.
# Called again it ends the one of before, whose settings may be others.
#
# It listens on loopback: `ray attach cluster.yaml --port-forward 5000` shows it on a laptop. MLflow's
# own variables set where it stores: MLFLOW_BACKEND_STORE_URI, MLFLOW_ARTIFACTS_DESTINATION.
set -euo pipefail
home=$HOME/.smallm/mlflow
mkdir -p "$home/artifacts"
export MLFLOW_BACKEND_STORE_URI="${MLFLOW_BACKEND_STORE_URI:-sqlite:///$home/mlflow.db}"
export MLFLOW_ARTIFACTS_DESTINATION="${MLFLOW_ARTIFACTS_DESTINATION:-$home/artifacts}"
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
own=$home/supervisor # the number of its process group, which holds a lock on the file while it runs

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

answers_as_mlflow() {
  timeout 5 bash -c 'exec 3<>/dev/tcp/127.0.0.1/5000
    printf "GET /health HTTP/1.0\r\nHost: 127.0.0.1:5000\r\n\r\n" >&3
    grep -qx OK <&3' 2>/dev/null
}

supervise() {
  while listens 6379; do
    if ! kill -0 "${server:-}" 2>/dev/null; then
      mlflow server --host 127.0.0.1 --port 5000 --workers 1 &
      server=$!
    fi
    sleep 2
  done
  echo "$(date): Ray has ended here"
  trap '' TERM
  kill -- "-$$"
  wait
}

end_own() {
  flock --nonblock 9 && return
  group=$(cat "$own")
  kill -- "-$group" 2>/dev/null || true
  for _ in $(seq 100); do
    flock --nonblock 9 && ! listens 5000 && return
    sleep 0.1
  done
  kill -KILL -- "-$group" 2>/dev/null || true
  flock --timeout 10 9 || {
    echo "MLflow of before does not end: process group $group" >&2
    exit 1
  }
}

if [ "${1:-}" = supervise ]; then
  supervise
  exit
fi
exec 9>> "$own"
end_own
if listens 5000; then
  answers_as_mlflow || {
    echo "port 5000 of $(hostname) is taken by a program that is not MLflow; end it there" >&2
    exit 1
  }
  echo "MLflow runs already, by other means than this script: end it to have other settings"
  exit
fi
setsid nohup "$0" supervise >> "$home/server.log" 2>&1 < /dev/null &
supervisor=$!
echo "$supervisor" > "$own"
exec 9>&- # from here on they alone hold the lock
for _ in $(seq 120); do
  if answers_as_mlflow; then
    echo "MLflow keeps runs in ${MLFLOW_BACKEND_STORE_URI##*@}, artifacts in $MLFLOW_ARTIFACTS_DESTINATION"
    exit
  fi
  kill -0 "$supervisor" 2>/dev/null || break
  sleep 1
done
echo "MLflow does not start; the end of $home/server.log says:" >&2
tail -n 5 "$home/server.log" >&2
exit 1
