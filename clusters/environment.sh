# What Ray's commands on a node need; install.sh lets ~/.bashrc read it for commands from elsewhere.
# shellcheck shell=bash
export PATH="$HOME/.smallm/environment/bin:$PATH"
export RAY_AUTH_MODE=token # every command of a cluster with a token needs it, `ray stop` included
export SMALLM_HOME="$HOME/.smallm/runs"
export MLFLOW_TRACKING_URI="${MLFLOW_TRACKING_URI:-http://127.0.0.1:5000}"
