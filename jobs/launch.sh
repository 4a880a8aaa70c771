# shellcheck shell=bash
# What the job scripts share: environment, launcher, signals, requeue. They source it.
#
# AMN_VENV      the environment to activate (.venv where the job was submitted, if there is one)
# AMN_LAUNCHER  what starts the ranks, such as "srun --mpi=pmix_v4" or "mpirun"; chosen if empty
# AMN_REQUEUES  this many requeues in a row without a new checkpoint end the job (5)

amn_say() { echo "$(date '+%F %T') job $SLURM_JOB_ID: $*"; }

# Slurm signals this shell: USR1 ahead of the time limit (--signal=B:...), TERM when it ends the job.
# The launcher hands USR1 on to every rank.
amn_stop() {
    amn_signal=$1
    amn_say "SIG$1: the ranks are to write a checkpoint and stop"
    if [ -n "$amn_child" ]; then kill -USR1 "$amn_child" 2>/dev/null; fi
}
amn_signal="" amn_child=""
trap 'amn_stop USR1' USR1
trap 'amn_stop TERM' TERM

# The environment, and amn_launcher: srun where it speaks the protocol of Python's MPI, else mpirun.
amn_start() {
    local library type=pmi2 venv=${AMN_VENV:-$SLURM_SUBMIT_DIR/.venv}
    # shellcheck disable=SC1091
    if [ -f "$venv/bin/activate" ]; then source "$venv/bin/activate"; fi
    library=$(python -c 'import mpi4py; mpi4py.rc.initialize = False
from mpi4py import MPI; print(MPI.Get_library_version().strip("\0"))') || exit 1
    case $library in
        *"Open MPI"*) type=pmix ;;
        *CRAY*) type=cray_shasta ;;
    esac
    read -ra amn_launcher <<<"${AMN_LAUNCHER:-mpirun}"
    # Not all that srun --mpi=list has can be loaded, so it is tried.
    if [ -z "${AMN_LAUNCHER:-}" ] && srun --mpi="$type" -N1 -n1 true 2>/dev/null; then
        amn_launcher=(srun "--mpi=$type")
    fi
}

# The folder in "--out FOLDER" among the job's arguments; else the first argument.
amn_out() {
    local out=$1
    while shift; do
        case ${1:-} in
            --out) out=${2:-$out} ;;
            --out=*) out=${1#--out=} ;;
        esac
    done
    echo "$out"
}

# Whether the job's arguments ask for a text in place of a run.
amn_asks() {
    local word
    for word; do
        case $word in --dry_run | --print_config | --help | -h | --version) return 0 ;; esac
    done
    return 1
}

# A rank for each task of the job: amn_run FOLDER COMMAND...
amn_run() {
    local out=$1
    shift
    amn_launch "$out" -n "$SLURM_NTASKS" "$@"
}

# A rank for each GPU, and rank 0, which needs none, on the first node. srun deals the ranks out to
# the nodes in turn; mpirun gets a list with a line for each. (With such a list srun --mpi=pmi2 tells
# MPICH that every rank has a node of its own.)
amn_run_gpus() {
    local out=$1 list=$1/.hosts ranks node
    shift
    ranks=$((SLURM_JOB_NUM_NODES * SLURM_GPUS_ON_NODE + 1))
    if [ "${amn_launcher[0]##*/}" = srun ]; then
        amn_launch "$out" -n "$ranks" --distribution=cyclic "$@"
    fi
    mkdir -p "$out" && echo "$SLURMD_NODENAME" >"$list" || exit 1
    for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
        for _ in $(seq "$SLURM_GPUS_ON_NODE"); do echo "$node"; done
    done >>"$list"
    amn_launch "$out" -n "$ranks" -machinefile "$list" "$@"
}

# Start the ranks, wait for their end, requeue the job if they stopped on a signal. Does not return.
amn_launch() {
    local out=$1 status=75
    shift
    if [ "${amn_launcher[0]##*/}" = srun ]; then
        # Ranks end together, after a checkpoint each with 75; whoever is left 8 s later has lost one.
        amn_launcher+=(--kill-on-bad-exit=0 --wait=8 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}")
        # A start that is killed outright leaves MPICH's shared memory behind, under the number of the
        # job step; the next start would hang in it, for a requeued job counts its steps from 0 again.
        for _ in $(seq "${SLURM_RESTART_COUNT:-0}"); do srun --mpi=none -N1 -n1 true; done
    fi
    unset SLURM_NTASKS_PER_NODE # of no use any more, and srun would warn of it in a GPU job
    if [ -z "$amn_signal" ]; then # else it came while this shell got ready
        amn_say "start $((${SLURM_RESTART_COUNT:-0} + 1)) on $SLURM_JOB_NODELIST: ${amn_launcher[*]} $*"
        "${amn_launcher[@]}" "$@" &
        amn_child=$!
        # A signal ends the wait, not the child, whose status bash keeps for a last one.
        while kill -0 "$amn_child" 2>/dev/null; do wait "$amn_child"; done
        wait "$amn_child"
        status=$?
    fi
    # Launchers that lose a node may end with 0; one that was asked for a text alone leaves no result.
    if [ "$status" = 0 ] && ! amn_asks "$@" && ! find -H "$out" -name result.json -o -name scores.csv | grep -q .; then
        amn_say "there is no result in $out"
        status=1
    fi
    amn_say "end with status $status"
    # A signal that comes before the program listens ends it with another one than 75.
    if [ "$status" = 75 ] || { [ "$status" != 0 ] && [ -n "$amn_signal" ]; }; then amn_requeue "$out"; fi
    exit "$status"
}

# Back into the queue, unless Slurm has seen to it, or it has brought nothing new for several times.
amn_requeue() {
    local id=$SLURM_JOB_ID before="" count=0 job now
    # The job number of an array's last task is that of the whole array.
    if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
    job=$(scontrol --oneliner show job "$id")
    case $job in
        *" Restarts=${SLURM_RESTART_COUNT:-0} "*) ;;
        *) amn_say "Slurm has requeued it" && return ;;
    esac
    case $job in
        *" JobState=RUNNING "* | *" Reason=TimeLimit "*) ;;
        *) amn_say "cancelled, so not requeued" && return ;;
    esac
    mkdir -p "$1"
    now=$(find -H "$1" -name 'round-*.h5' -o -name result.json | sort | cksum)
    if [ -f "$1/.requeues" ]; then read -r count before <"$1/.requeues"; fi
    if [ "$now" != "$before" ]; then count=0; fi
    if [ "$count" -ge "${AMN_REQUEUES:-5}" ]; then
        amn_say "not requeued: $count times it has brought no new checkpoint"
        return
    fi
    echo "$((count + 1)) $now" >"$1/.requeues"
    scontrol requeue "$id" && amn_say "requeued"
}
