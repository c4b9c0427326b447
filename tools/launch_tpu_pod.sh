#!/usr/bin/env bash
# Runs the same fct_jax command on every host of a Cloud TPU pod slice. See --help and docs/pods.md.
set -euo pipefail

usage() {
  cat <<'HELP'
Run the same fct_jax command on every host of a Cloud TPU pod slice.

  tools/launch_tpu_pod.sh --name=NAME --zone=ZONE [--project=P] [--folder=DIR] [--dry_run] ACTION

Actions:
  setup              copy this repository to every host and install it there
  check FLAGS        run `fct-jax doctor cluster FLAGS` on all hosts: it checks that they find each
                     other, and that ports, shared folder, clocks and versions are right
  devices            print how many devices every host sees; all must name the same total
  run STAGE FLAGS    run `python -m fct_jax.STAGE --distributed FLAGS` on all hosts and wait
  start STAGE FLAGS  run it in the background, where it goes on when this machine disconnects
  log                print the last lines of what `start` printed on host 0
  stop               send SIGTERM to all hosts: training saves and ends; `start` resumes it

STAGE is train, embed or evaluate. --workdir, and runs that a config names, must be in a folder that
all hosts share.

Flags:
  --name     name of the TPU VM, as `gcloud compute tpus tpu-vm list` shows it
  --zone     zone of the TPU VM
  --project  Google Cloud project; default: the one that gcloud is set to
  --folder   folder of the repository on the hosts, below the home directory; default: fct_jax
  --dry_run  print the commands without running them

Example:
  tools/launch_tpu_pod.sh --name=pod --zone=us-central2-b start train \
      --config configs/imagenet_backbone_new.py --workdir /shared/runs/imagenet/new
HELP
}

fail() {
  echo "error: $1" >&2
  exit 1
}

name="" zone="" project="" folder="fct_jax" dry_run=""
while [[ $# -gt 0 ]]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --name=* | --zone=* | --project=* | --folder=*)
      flag="${1%%=*}"
      printf -v "${flag#--}" '%s' "${1#*=}"
      shift ;;
    --name | --zone | --project | --folder)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2 ;;
    --dry_run) dry_run=yes; shift ;;
    -*) fail "unknown flag $1; flags come before the action: --name --zone --project --folder --dry_run" ;;
    *) break ;;
  esac
done

[[ $# -ge 1 ]] || fail "no action; known: setup, check, devices, run, start, log, stop (--help explains them)"
action="$1"
shift
[[ -n "$name" ]] || fail "--name is missing: the TPU VM's, as in gcloud compute tpus tpu-vm list"
[[ -n "$zone" ]] || fail "--zone is missing, us-central2-b for example"
[[ "$folder" =~ ^[A-Za-z0-9_./-]+$ ]] || fail "--folder=$folder must be a plain path"
[[ -n "$dry_run" ]] || command -v gcloud >/dev/null || fail "gcloud is not installed"

place=("--zone=$zone")
[[ -z "$project" ]] || place+=("--project=$project")

gcloud_tpu() {
  if [[ -n "$dry_run" ]]; then
    printf '%q ' gcloud compute tpus tpu-vm "$@" "${place[@]}"
    echo
  else
    gcloud compute tpus tpu-vm "$@" "${place[@]}"
  fi
}

on_hosts() { # arguments: hosts, command
  gcloud_tpu ssh "$name" "--worker=$1" "--command=$2"
}

stage_command() {
  [[ $# -ge 1 ]] || fail "no stage; write: $action train --config … --workdir …"
  case "$1" in
    train | embed | evaluate) ;;
    *) fail "unknown stage $1; known: train, embed, evaluate" ;;
  esac
  local stage="$1"
  shift
  [[ " $* " == *" --config"[=\ ]* ]] || fail "--config is missing after $stage"
  [[ " $* " == *" --workdir"[=\ ]* ]] || fail "--workdir is missing after $stage"
  printf '.venv/bin/python -u -m fct_jax.%s --distributed' "$stage"
  printf ' %q' "$@"
}

no_more() {
  [[ $# -eq 0 ]] || fail "$action takes no further arguments: $*"
}

case "$action" in
  setup)
    no_more "$@"
    repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    # Copy only the files that git holds, without the virtual environment and runs.
    archive="$(mktemp -d)/fct_jax.tar.gz"
    git -C "$repository" archive --format=tar.gz --output="$archive" HEAD
    gcloud_tpu scp "$archive" "$name:fct_jax.tar.gz" --worker=all
    # The hosts' own Python is too old for fct_jax.
    on_hosts all "set -e; mkdir -p $folder; tar -xzf fct_jax.tar.gz -C $folder; cd $folder; test -x .venv/bin/python || { sudo apt-get install -qq -y python3.11-venv; python3.11 -m venv .venv; }; .venv/bin/python -m pip install --quiet -r requirements.txt 'jax[tpu]' -e ."
    rm -r "$(dirname "$archive")"
    ;;
  check)
    flags=""
    [[ $# -eq 0 ]] || printf -v flags ' %q' "$@"
    on_hosts all "cd $folder && .venv/bin/python -m fct_jax doctor cluster$flags"
    ;;
  devices)
    no_more "$@"
    on_hosts all "cd $folder && .venv/bin/python -c 'import jax; jax.distributed.initialize(); print(f\"host {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} devices here, {jax.device_count()} in all\")'"
    ;;
  run)
    command="$(stage_command "$@")"
    on_hosts all "cd $folder && $command"
    ;;
  start)
    command="$(stage_command "$@")"
    on_hosts all "cd $folder && { nohup $command > start.log 2>&1 < /dev/null & echo \$! > start.pid; }"
    ;;
  log)
    no_more "$@"
    on_hosts 0 "tail -n 40 $folder/start.log"
    ;;
  stop)
    no_more "$@"
    on_hosts all "kill -TERM \$(cat $folder/start.pid)"
    ;;
  *) fail "unknown action $action; known: setup, check, devices, run, start, log, stop" ;;
esac
