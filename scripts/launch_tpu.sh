#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on a Cloud TPU that may be taken away. Kept to bash 3.2, macOS's own.
set -euo pipefail
cd "$(dirname "$0")/.."

show_help() {
  cat << 'END'
Trains on a Cloud TPU slice, from asking for it to giving it back:

  bash scripts/launch_tpu.sh --name=xl --zone=us-east5-a --bucket=gs://BUCKET \
    -- --gin_file=configs/upcycle_t5_xl.gin --gin.MODEL_DIR="'runs/xl'" \
    --gin.DENSE_CHECKPOINT="'t5_1_1_xl/checkpoint_1000000'"

What comes after -- is what scripts/train.py gets. It runs in the bucket, which
every worker mounts: runs/xl is gs://BUCKET/runs/xl, data sets of TFDS are in
tensorflow_datasets/, the logs of all workers come to logs/NAME/. A slice that
is taken away is asked for again, and the run goes on from its last checkpoint.
Ctrl-C ends this script alone; the same command follows the run again.

  option          what it is                             default
  --name=NAME     of the queued resource and its TPU     (required)
  --zone=ZONE     one that has the type                  (required)
  --bucket=gs://  of hierarchical namespace              (required)
  --type=TYPE     v4-N, v5litepod-N (v5e), v5p-N, v6e-N  v5p-128
  --version=V     runtime version of the machines        by the type's prefix
  --project=P     of Google Cloud                        gcloud's own
  --spot          may be taken away, costs less          yes
  --on-demand     the opposite                           no
  --poll=SECONDS  between two looks at the state         60
  --keep          the slice stays after the run's end    no
  --dry-run       prints every command, and runs none    no

  --log           shows the first worker's log; takes --name and --zone
  --stop          the run saves and stops, the slice goes; takes the same

Before the first time: gcloud auth login, ssh-add ~/.ssh/google_compute_engine,
and a bucket near the zone, whose folders are renamed at once, as a checkpoint
is when it is whole:

  gcloud storage buckets create gs://BUCKET --location=REGION \
    --uniform-bucket-level-access --enable-hierarchical-namespace
END
}

die() {
  echo "launch_tpu.sh: $*" >&2
  exit 2
}

name='' zone='' bucket='' project='' type=v5p-128 version='' poll=60
spot=--spot keep=false dry=false action=train
while (($#)); do
  case $1 in
    --name=* | --zone=* | --bucket=* | --project=* | --type=* | --version=* | \
      --poll=*)
      option=${1%%=*}
      printf -v "${option#--}" %s "${1#*=}"
      ;;
    --spot) spot=--spot ;;
    --on-demand) spot='' ;;
    --keep) keep=true ;;
    --dry-run) dry=true ;;
    --log | --stop) action=${1#--} ;;
    --help | -h)
      show_help
      exit
      ;;
    --)
      shift
      break
      ;;
    *) die "$1 is no option: they look like --name=VALUE, --help lists them," \
      "and what scripts/train.py gets comes after --." ;;
  esac
  shift
done

missing=''
[[ $name ]] || missing+=', --name'
[[ $zone ]] || missing+=', --zone'
if [[ $action == train ]]; then
  [[ $bucket ]] || missing+=', --bucket'
  (($#)) || missing+=', what scripts/train.py gets, after --'
fi
[[ -z $missing ]] || die "missing:${missing#,}. --help says what they are."
[[ $name =~ ^[a-z][-a-z0-9]*$ ]] ||
  die "--name=$name is not made of small letters, digits and dashes."
[[ $action != train || $bucket =~ ^gs://[-a-z0-9._]+/?$ ]] ||
  die "--bucket=$bucket is not gs:// and the name of a bucket."
[[ $poll =~ ^[0-9]+$ ]] || die "--poll=$poll is not a number of seconds."
[[ $version ]] || case $type in
  v4-*) version=tpu-ubuntu2204-base ;;
  v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  v5p-*) version=v2-alpha-tpuv5 ;;
  v6e-*) version=v2-alpha-tpuv6e ;;
  *) die "which runtime version has --type=$type? Give --version." ;;
esac
bucket=${bucket%/}
where=(--zone="$zone" ${project:+--project="$project"})
archive=build/$name.tar.gz

# What a worker does, in its home folder. Each part is safe to repeat, and
# leaves a run alone that is there: it holds run.lock.
install='set -e
flock --nonblock run.lock true || exit 0
rm -rf upcycle && mkdir upcycle && tar -xzf upcycle.tar.gz -C upcycle
cd upcycle
# The machines have Python 3.10; uv brings one that the project runs on.
version=$(sed -n "s/^UV_VERSION := //p" Makefile)
python3 -m pip install --quiet --upgrade --target=../uv "uv==$version"
uv=../uv/bin/uv
$uv venv --quiet --python=3.12
$uv pip install --quiet --require-hashes -r requirements.lock
$uv pip install --quiet --no-deps --no-build-isolation -e .
$uv pip install --quiet "jax[tpu]"'

# Nothing is cached about files: workers wait for what others write, and by
# default gcsfuse never looks again on machines like these.
mount='set -e
command -v gcsfuse > /dev/null || {
  url=https://packages.cloud.google.com/apt key=/etc/apt/keyrings/gcsfuse.asc
  sudo curl -fsS --create-dirs -o $key $url/doc/apt-key.gpg
  echo "deb [signed-by=$key] $url gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  sudo apt-get -qq update
  sudo apt-get -qq -y -o DPkg::Lock::Timeout=600 install gcsfuse
}
mkdir -p bucket
mountpoint -q bucket || gcsfuse --metadata-cache-ttl-secs=0 \
  --metadata-cache-negative-ttl-secs=0 "$bucket" bucket'

train='(
  trap "" HUP
  flock --nonblock 9 || exit
  rm -f run.exit
  cd bucket
  export TFDS_DATA_DIR=$PWD/tensorflow_datasets
  export JAX_COMPILATION_CACHE_DIR=$PWD/cache
  python=~/upcycle/.venv/bin/python
  $python ~/upcycle/scripts/supervise.py \
    $python ~/upcycle/scripts/train.py --distributed=auto "$@"
  echo $? > ~/run.exit
  mkdir -p "logs/$name" && cp ~/run.log "logs/$name/$(uname -n).log"
) 9> run.lock >> run.log 2>&1 < /dev/null &'

status='flock --nonblock run.lock true || { echo running; exit; }
cat run.exit 2> /dev/null || echo lost'

stop='pkill -TERM -f "^[^ ]*python [^ ]*supervise.py"
flock --timeout 600 run.lock true'

say() {
  if $dry; then echo "# $*"; else echo "$(date +%T) $name: $*"; fi
}

quote() { # words as a shell reads them, on one line
  local word line='' apostrophe="'\\''"
  for word; do
    if [[ -z $word || $word == *[!a-zA-Z0-9_./:=,@%+-]* ]]; then
      word=${word//\'/$apostrophe}
      word="'$word'"
    fi
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

run() {
  if $dry; then quote "$@"; else "$@"; fi
}

tpu() {
  run gcloud compute tpus "$@" "${where[@]}" --quiet
}

workers() { # which ones, what they do
  tpu tpu-vm ssh "$name" --worker="$1" --command="$2"
}

check_bucket() {
  local found
  found=$(run gcloud storage buckets describe "$bucket" --raw \
    --format='value(hierarchicalNamespace.enabled)')
  if $dry; then
    echo "$found"
  elif [[ $found != True ]]; then
    die "$bucket is not of hierarchical namespace: a checkpoint would be" \
      "renamed file by file, and a preemption amid that would damage it." \
      "--help says how to make one that is."
  fi
}

pack() {
  git diff --quiet HEAD || say 'What is not committed is left out.'
  run mkdir -p build
  run git archive --format=tar.gz --output="$archive" HEAD
}

look() {
  tpu queued-resources list --filter="name~/$name\$" \
    --format='value(state.state)'
}

create() {
  tpu queued-resources create "$name" --node-id="$name" \
    --accelerator-type="$type" --runtime-version="$version" $spot
}

delete() {
  tpu queued-resources delete "$name" --force
}

start() {
  tpu tpu-vm scp "$archive" "$name:upcycle.tar.gz" --worker=all &&
    workers all "$install" &&
    workers all "bucket=${bucket#gs://}"$'\n'"$mount" &&
    workers all "name=$name; set -- $(quote "$@")"$'\n'"$train"
}

finish() {
  say "The run has ended with exit code $1."
  (($1 == 0)) || workers 0 'tail -n 50 run.log' || true
  $keep || delete
  exit "$1"
}

began=false failures=0
follow() { # what comes next on a slice that is there
  local code codes again=false
  # A machine that is on its way up or down cannot be asked.
  codes=$(workers all "$status") && [[ $codes ]] || return 0
  [[ $codes != *running* ]] || began=true
  $began || again=true
  for code in $codes; do
    case $code in
      running | 0) ;;
      lost | 75 | 129 | 1[3-9][0-9]) again=true ;; # 128 and more: a signal
      [1-9]*) ! $began || finish "$code" ;;
    esac
  done
  if ! $again; then
    [[ $codes == *running* ]] || finish 0
  elif say 'The workers are set up, and start.' && start "$@"; then
    began=true failures=0
  elif ((++failures == 5)); then
    die "the workers could not be set up $failures times. They are still" \
      "there and paid for: --stop gives them back."
  fi
}

case $action in
  log)
    workers 0 'tail -n 100 -F run.log'
    exit
    ;;
  stop)
    workers all "$stop" || say 'No run has answered.'
    delete
    exit
    ;;
esac
check_bucket
pack
if $dry; then
  say "The state, every $poll s:" && look
  say 'None: it is asked for.' && create
  say 'ACTIVE: the workers are set up, and start.' && start "$@"
  say "ACTIVE: whether they run, every $poll s:" && workers all "$status"
  say 'SUSPENDED or FAILED: all again, from None.' && delete
  say 'Ended:' && { $keep || delete; }
  exit
fi
state=unseen there=false lost=false
while :; do
  before=$state
  state=$(look) || state=unknown
  [[ $state == "$before" ]] || say "${state:-None}"
  case $state in
    '')
      $there && say 'Somebody has deleted it.' && exit 1
      # After a preemption there may be no room for a while.
      if create; then there=true failures=0; else $lost || exit 1; fi
      ;;
    ACTIVE)
      there=true
      follow "$@"
      ;;
    SUSPENDED | FAILED) if delete; then there=false lost=true; fi ;;
  esac
  sleep "$poll"
done
