#!/bin/sh
# A night's work on jobs/digits.*: `night.sh` does all of it, `night.sh build`, `train` or `report` one step. `night.sh
# audit` is for once a week: every object against its digest, 200 rows against their teachers; then garbage is deleted.
# Every other file in this folder starts this one. For jobs of your own, copy the folder and change the commands below.
#
# What is done already costs seconds, so it may be started again at any time, also after a kill. It ends with the status
# of the first command that failed; only 3 lets the others go on, and is the status at the end.
#
#   0         all is there
#   1         a failure of ours, a full disk: look at the log
#   2         a bad request, such as a mistake in a job file: starting it again does not help
#   3         finished, but rows are missing: the log lists them
#   65        corruption was found: `cache verify CACHE` lists it, `--repair` has it made again
#   75        try again: the cluster was lost, or another start is at work
#   130, 143  stopped by a signal; starting it again goes on
#
# With LOG_FORMAT=json in the environment, stderr is a line of JSON for each event; with METRICS=FOLDER, figures for
# Prometheus lie there (docs/nights.md); with OTHERS=wait, another start is waited for, in place of 75.
set -u
cd "$(dirname "$0")/../.." || exit 1
if [ -d .venv/bin ]; then PATH=$PWD/.venv/bin:$PATH; fi

ingest=jobs/digits.ingest.toml teacher=jobs/digits.teacher.toml
cache=jobs/digits.cache.toml students=jobs/digits.students.toml runs=runs/digits folder=caches/digits

run() {
    echo "night.sh: $*"
    # A shell would leave its child behind when it is told to end; this one tells it, and waits.
    child='' left=''
    trap 'again=yes left=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT
    "$@" & child=$!
    if [ -n "$left" ]; then kill -TERM "$child"; fi
    again=yes
    while [ -n "$again" ]; do again=''; status=0; wait "$child" || status=$?; done
    trap - TERM INT
    if [ -n "$left" ] && [ "$status" = 0 ]; then status=143; fi
    case $status in
        0) ;;
        3) ended=3 ;;
        *) echo "night.sh: $* ended with $status" >&2; exit "$status" ;;
    esac
}

told() {
    name=$1
    shift
    if [ -n "${LOG_FORMAT-}" ]; then set -- "$@" --log-format "$LOG_FORMAT"; fi
    if [ -n "${METRICS-}" ]; then set -- "$@" --metrics-file "$METRICS/stillroom-$name.prom"; fi
    run "$@"
}

alone() {
    if [ "${OTHERS-}" = wait ]; then told "$@" --wait; else told "$@"; fi
}

build() {
    alone ingest cache build "$ingest"
    alone teacher student train "$teacher"
    alone cache cache build "$cache"
}
train() { alone students student train "$students"; }
audit() {
    told verify cache verify "$folder"
    told audit cache verify "$folder" --teacher "$cache"
    told gc cache gc "$folder"
}
report() { run student report "$runs"; run cache status "$cache"; }  # the last one says 3 while rows are missing

ended=0
case ${1-all} in
    all) build; train; report ;;
    build | train | report | audit) "$1" ;;
    *) echo "night.sh: no step $1; there are build, train, report, audit" >&2; exit 2 ;;
esac
exit "$ended"
