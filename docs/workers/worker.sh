#!/bin/sh
# A tes worker with curl and sed.
#
#     TES_URL=http://127.0.0.1:8080 TES_TOKEN_FILE=token sh worker.sh [definition]
#
# The worker reads TES_TOKEN_FILE for each call, so that you can renew the token; TES_TOKEN is a
# token itself. Ctrl-C or SIGTERM stops the worker after its present task. Replace work().
set -u
url=${TES_URL:-http://127.0.0.1:8080}/api/internal/leases
worker=${WORKER_ID:-sh-$$}
stopping=
trap 'stopping=yes' INT TERM

# Reads the lease on stdin, writes the output. Return another status than 0 to fail the attempt.
work() {
    printf '{"by": "%s"}' "$worker"
}

token() {
    if [ -n "${TES_TOKEN_FILE:-}" ]; then cat "$TES_TOKEN_FILE"; else printf '%s' "$TES_TOKEN"; fi
}

# post PATH BODY sends the call again until there is an answer, because every call may be repeated.
# 401 means an expired token, 429 and 5xx a busy server: the lease is not concerned.
post() {
    until answer=$(printf '%s' "$2" | curl -sS -m 90 -w '\n%{http_code}' -H "Authorization: Bearer $(token)" \
        -H 'Content-Type: application/json' --data-binary @- "$url$1") &&
        status=${answer##*
} && [ "$status" -lt 500 ] && [ "$status" != 401 ] && [ "$status" != 429 ]; do
        [ -n "$stopping" ] && return 1
        printf '%s asks again: %s\n' "$worker" "${status:-no answer}" >&2
        sleep 1
    done
    answer=${answer%
*}
}

selection=
[ $# -gt 0 ] && selection=', "select": [{"queue": "task-execution-automated", "taskDefinitionIds": ["'$1'"]}]'
n=0
while [ -z "$stopping" ]; do
    n=$((n + 1))
    post '' '{"workerId": "'"$worker"'", "requestId": "'"$worker-$$-$n"'", "waitMs": 5000'"$selection"'}' || break
    if [ "$status" -ge 400 ]; then # 403 or 422: a repetition would not help
        printf '%s\n' "$answer" >&2
        exit 1
    fi
    token=$(printf '%s' "$answer" | sed -n 's/.*"leaseToken":"\([A-Za-z0-9_-]*\)".*/\1/p')
    [ -n "$token" ] || continue
    # A heartbeat each ten seconds, a third of the default visibility timeout.
    # The loop ends by itself when the lease has ended, in case the kill below comes too early.
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
