#!/usr/bin/env bash
# Start torchrun, and start it again whenever it fails: deploy/ranks.sh ARGUMENTS-OF-TORCHRUN
#
#   deploy/ranks.sh --standalone --nproc-per-node 2 --max-restarts 20 -m -- \
#       adc_edge trainer --bundle DIR --run DIR --bind tcp://HOST:PORT --keys DIR
#
# torchrun starts all ranks anew when one of them dies, but nobody starts torchrun anew when it dies itself, or when its
# restarts are used up. Ranks end with the torchrun that started them, and the next ones go on from the last checkpoint.
# This script ends
#   with 0    when torchrun ends with 0: the run is over. On a host whose torchrun fails while the others end the run,
#             it ends with 0 as well, if --run and --devices are among its arguments: there is nobody left to wait for
#   with 143  after SIGTERM, SIGHUP (a closed ssh session) or SIGQUIT, and with 130 after SIGINT. It hands them on as
#             SIGTERM or SIGINT: all ranks make a checkpoint
#   with 2    after wrong use: a mistake in the arguments of the trainer, its bundle or its keys, found before any rank
#             of this host was at work. Tries do not mend it, and torchrun's own exit code does not tell it
#
# On several hosts, this script on each one (docs/scale.md says why):
#
#   deploy/ranks.sh --nnodes 2 --nproc-per-node 1 --max-restarts 20 --local-addr ADDRESS-OF-THIS-HOST \
#       --rdzv-backend c10d --rdzv-endpoint ADDRESS-OF-HOST-0:29400 --rdzv-id NAME \
#       --rdzv-conf join_timeout=600,read_timeout=600,last_call_timeout=5,is_host=1 \
#       -m -- adc_edge trainer …       # is_host=0 on the other hosts
#
# Environment: ADC_EDGE_TORCHRUN is the torchrun to start (default: the one in the path). TORCH_DISABLE_SHARE_RDZV_TCP_STORE
# is set to 1 unless it has a value: ranks on several hosts need it.
set -um # -m: Ctrl-C at a terminal reaches torchrun through this script alone, once

TORCHRUN=${ADC_EDGE_TORCHRUN:-torchrun}
LONGEST_S=30 # between two starts
STEADY_S=60  # after so long the next start is at once again
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}

if [[ $# -eq 0 ]]; then
    echo "ranks.sh: usage: deploy/ranks.sh ARGUMENTS-OF-TORCHRUN -m -- adc_edge trainer …" >&2
    exit 2
fi
if ! command -v "$TORCHRUN" >/dev/null; then
    echo "ranks.sh: no $TORCHRUN; put it in the path, or export ADC_EDGE_TORCHRUN=/path/to/torchrun" >&2
    exit 2
fi

run='' devices=0 before=''
for argument in "$@"; do
    case $before in --run) run=$argument ;; --devices) devices=$argument ;; esac
    case $argument in --run=*) run=${argument#*=} ;; --devices=*) devices=${argument#*=} ;; esac
    before=$argument
done

# Print the newest event of a start or an end, of a run that ends once its devices are done.
last_event() {
    [[ -n $run && $devices != 0 ]] || return
    tail -n 100 "$run/events.jsonl" 2>/dev/null | grep -E '"kind": ?"(started|ended)"' | tail -n 1
}

# A rank that finds a mistake of its user writes it there, and ranks that are at work remove the file
# (adc_edge/machine/supervisor.py).
ADC_EDGE_WRONG_USE=$(mktemp) || exit 1
export ADC_EDGE_WRONG_USE
trap 'rm -f "$ADC_EDGE_WRONG_USE"' EXIT

child=0 asked=''
# shellcheck disable=SC2329 # the traps call it
hand_on() {
    asked=$1
    [[ $child -ne 0 ]] && kill -s "$1" "$child" 2>/dev/null
}
trap 'hand_on TERM' TERM HUP QUIT
trap 'hand_on INT' INT

# Wait for the end of torchrun. After wrong use its other restarts are of no use. `wait` for torchrun itself would end
# again and again while it is stopped (SIGSTOP).
await_torchrun() {
    local told=''
    while kill -0 "$child" 2>/dev/null; do
        if [[ -z $told && -s $ADC_EDGE_WRONG_USE ]]; then
            told=1
            kill "$child" 2>/dev/null
        fi
        sleep 0.3 &
        wait $!
    done
    wait "$child"
}

pause_s=1
at_start=$(last_event)
while [[ -z $asked ]]; do
    started_s=$SECONDS
    "$TORCHRUN" "$@" &
    child=$!
    [[ -n $asked ]] && kill -s "$asked" "$child" # it came before `child` was known
    await_torchrun
    code=$?
    child=0
    [[ $code -eq 0 ]] && exit 0
    [[ -n $asked ]] && break
    if [[ -s $ADC_EDGE_WRONG_USE ]]; then
        echo "ranks.sh: wrong use, which another start does not mend: $(head -n 1 "$ADC_EDGE_WRONG_USE")" >&2
        exit 2
    fi
    event=$(last_event)
    if [[ $event != "$at_start" && $event =~ \"complete\":\ ?true ]]; then
        echo "ranks.sh: torchrun ended with exit code $code after the run had ended" >&2
        exit 0
    fi
    ((SECONDS - started_s >= STEADY_S)) && pause_s=1
    echo "ranks.sh: torchrun ended with exit code $code; next start in $pause_s s" >&2
    sleep "$pause_s" &
    child=$!
    wait "$child"
    [[ -n $asked ]] && kill "$child" 2>/dev/null
    child=0
    pause_s=$((pause_s * 2 < LONGEST_S ? pause_s * 2 : LONGEST_S))
done
[[ $asked == INT ]] && exit 130
exit 143
