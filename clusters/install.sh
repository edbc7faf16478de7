#!/usr/bin/env bash
# Installs SmaLLM and its pinned dependencies on a node, in ~/.smallm/environment. Where the same is
# installed already it does nothing: the code itself is used where `ray up` puts it, without a copy.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" != steps ]; then
  said=$(mktemp)
  trap 'rm -f "$said"' EXIT
  { bash clusters/install.sh steps 2>&1 >&3 | tee "$said" >&2; } 3>&1 && exit
  # Of all that was said, a search finds by the address what kept a machine away.
  echo "$(hostname -I)($(hostname)): SmaLLM is not installed: $(grep . "$said" | tail -n 1)" >&2
  exit 1
fi
environment=$HOME/.smallm/environment
python=${SMALLM_PYTHON:-python3.11}

# Only for commands from elsewhere (bash -c), as Ray sends them; a person's own shell stays as it is.
# shellcheck disable=SC2016
line='[ -z "${BASH_EXECUTION_STRING:-}" ] || . ~/.smallm/source/clusters/environment.sh'
grep -qxF "$line" ~/.bashrc 2>/dev/null || printf '\n%s\n' "$line" >> ~/.bashrc

wanted=$(cat pyproject.toml constraints.txt clusters/install.sh | sha256sum)
if [ "$(cat "$environment/installed" 2>/dev/null)" = "$wanted" ]; then
  echo "SmaLLM is installed on $(hostname)"
  exit
fi
"$python" -c 'import ensurepip, venv' || {
  echo "there is no $python with venv; install it (Debian: python3.11-venv), or set SMALLM_PYTHON" >&2
  exit 1
}
rm -f "$environment/installed"
"$python" -m venv "$environment"
pip=("$environment/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet --upgrade "pip>=25.1"
"${pip[@]}" install --quiet --constraint constraints.txt torch
"${pip[@]}" install --quiet --constraint constraints.txt --editable ".[mlflow-server,openml,serve,tune]"
"${pip[@]}" install --quiet --constraint constraints.txt --no-deps --group baselines
echo "$wanted" > "$environment/installed"
echo "installed SmaLLM on $(hostname)"
