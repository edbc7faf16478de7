#!/usr/bin/env bash
# Stops Ray on a worker soon after it has been stopped on the head: `ray down` stops it there alone.
#
#     bash follow.sh ADDRESS_OF_THE_HEAD
set -euo pipefail
mkdir -p ~/.smallm
if [ "${2:-}" != follow ]; then
  setsid nohup "$0" "$1" follow >> ~/.smallm/follow.log 2>&1 < /dev/null &
  exit
fi
exec 9> ~/.smallm/follow.lock
flock --nonblock 9 || exit 0 # one that runs already

# A head that refuses has stopped; one that does not answer may only be cut off for a while.
gone=0
while [ "$gone" -lt 120 ]; do
  sleep 5
  if answer=$(timeout 5 bash -c "exec 3<>/dev/tcp/$1/6379" 2>&1); then
    gone=0
  elif [[ $answer == *refused* ]]; then
    gone=$((gone + 40))
  else
    gone=$((gone + 5))
  fi
done
echo "$(date): the head at $1 is gone"
ray stop --force 9>&-
