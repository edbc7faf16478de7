#!/usr/bin/env bash
# Runs an MLflow server on the head for as long as Ray runs there, and starts it again if it dies.
#
# It listens on loopback: `ray attach cluster.yaml --port-forward 5000` shows it on a laptop. MLflow's
# own variables set where it stores: MLFLOW_BACKEND_STORE_URI, MLFLOW_ARTIFACTS_DESTINATION.
set -euo pipefail
home=$HOME/.smallm/mlflow
mkdir -p "$home/artifacts"
export MLFLOW_BACKEND_STORE_URI="${MLFLOW_BACKEND_STORE_URI:-sqlite:///$home/mlflow.db}"
export MLFLOW_ARTIFACTS_DESTINATION="${MLFLOW_ARTIFACTS_DESTINATION:-$home/artifacts}"
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false

answers() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }

supervise() {
  while answers 127.0.0.1 6379; do
    if ! kill -0 "${server:-}" 2>/dev/null; then
      setsid mlflow server --host 127.0.0.1 --port 5000 --workers 1 &
      server=$!
    fi
    sleep 2
  done
  kill -- "-$server"
  wait
}

if [ "${1:-}" = supervise ]; then
  supervise
  exit
fi
if answers 127.0.0.1 5000; then
  echo "MLflow runs already"
  exit
fi
setsid nohup "$0" supervise >> "$home/server.log" 2>&1 < /dev/null &
for _ in $(seq 120); do
  if answers 127.0.0.1 5000; then
    echo "MLflow keeps runs in ${MLFLOW_BACKEND_STORE_URI##*@}, artifacts in $MLFLOW_ARTIFACTS_DESTINATION"
    exit
  fi
  sleep 1
done
echo "MLflow does not start; the end of $home/server.log says:" >&2
tail -n 5 "$home/server.log" >&2
exit 1
