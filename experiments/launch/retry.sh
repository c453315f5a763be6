#!/bin/sh
# Run a command on a host, again and again while it fails, at most RETRIES times. A wrong call
# (status 2) is not tried again; one that was ended and saved itself (75), or lost a host, is.
tries=0
while :; do
  "$@" && exit 0
  status=$?
  tries=$((tries + 1))
  if [ "$status" -eq 2 ] || [ "$tries" -gt "${RETRIES:-20}" ]; then exit "$status"; fi
  echo "launch: status $status; try $tries of ${RETRIES:-20} in 10 s" >&2
  sleep "${WAIT:-10}"
done
