#!/bin/sh
# A tes worker with curl and sed.
#
#     TES_URL=http://127.0.0.1:8080 TES_TOKEN=... sh worker.sh [definition]
#
# Ctrl-C or SIGTERM stops it after the task at hand. Replace work().
set -u
url=${TES_URL:-http://127.0.0.1:8080}/api/internal/leases
worker=${WORKER_ID:-sh-$$}
stopping=
trap 'stopping=yes' INT TERM

# Reads the lease on stdin, writes the output. To fail, return something but 0.
work() {
    printf '{"by": "%s"}' "$worker"
}

# post PATH BODY: again until it is answered, for every call may be repeated.
post() {
    until answer=$(printf '%s' "$2" | curl -sS -m 90 -w '\n%{http_code}' -H "Authorization: Bearer $TES_TOKEN" \
        -H 'Content-Type: application/json' --data-binary @- "$url$1") && [ "${answer##*
}" -lt 500 ]; do
        [ -n "$stopping" ] && return 1
        sleep 1
    done
    status=${answer##*
}
    answer=${answer%
*}
}

selection=
[ $# -gt 0 ] && selection=', "select": [{"queue": "task-execution-automated", "taskDefinitionIds": ["'$1'"]}]'
n=0
while [ -z "$stopping" ]; do
    n=$((n + 1))
    post '' '{"workerId": "'"$worker"'", "requestId": "'"$worker-$$-$n"'", "waitMs": 5000'"$selection"'}' || break
    if [ "$status" -ge 400 ]; then
        printf '%s\n' "$answer" >&2
        exit 1
    fi
    token=$(printf '%s' "$answer" | sed -n 's/.*"leaseToken":"\([A-Za-z0-9_-]*\)".*/\1/p')
    [ -n "$token" ] || continue
    # A heartbeat each ten seconds, a third of the default visibility timeout.
    # It ends by itself when the lease does, should the kill below come too soon.
    (while sleep 10 && post "/$token/heartbeat" '{}' && [ "$status" -lt 400 ]; do :; done) >/dev/null 2>&1 &
    heart=$!
    if output=$(printf '%s' "$answer" | work); then
        end=complete body='{"output": '"$output"'}'
    else
        end=fail body='{"errorCode": "EXIT", "errorMessage": "work failed"}'
    fi
    kill "$heart" 2>/dev/null
    post "/$token/$end" "$body" && printf '%s %s %s %s\n' "$worker" "$end" "$status" "$answer"
done
