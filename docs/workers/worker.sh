#!/bin/sh
# A tes worker with curl and sed.
#
#     TES_URL=http://127.0.0.1:8080 TES_TOKEN_FILE=token sh worker.sh [definition]
#
# The file is read for each call, so that the token can be renewed; TES_TOKEN is a token
# itself. Ctrl-C or SIGTERM stops it after the task at hand. Replace work().
set -u
url=${TES_URL:-http://127.0.0.1:8080}/api/internal/leases
worker=${WORKER_ID:-sh-$$}
stopping=
trap 'stopping=yes' INT TERM

# Reads the lease on stdin, writes the output. To fail, return something but 0.
work() {
    printf '{"by": "%s"}' "$worker"
}

token() {
    if [ -n "${TES_TOKEN_FILE:-}" ]; then cat "$TES_TOKEN_FILE"; else printf '%s' "$TES_TOKEN"; fi
}

# post PATH BODY: again until it is answered, for every call may be repeated. 401 is a
# token that is over, 429 and 5xx a server that is busy: neither says anything of the lease.
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
    if [ "$status" -ge 400 ]; then # 403 or 422: neither passes by itself
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
