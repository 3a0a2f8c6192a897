#!/usr/bin/env python3
"""A tes worker with nothing but Python's standard library.

    TES_URL=http://127.0.0.1:8080 TES_TOKEN_FILE=token python3 worker.py [definition ...]

The worker reads the file for each call, so that you can renew the token; TES_TOKEN is a
token itself. Ctrl-C or SIGTERM releases the task at hand. Replace work().
"""
import json, os, signal, sys, threading, time, urllib.error, urllib.request, uuid

URL = os.environ.get("TES_URL", "http://127.0.0.1:8080") + "/api/internal/leases"
WORKER = os.environ.get("WORKER_ID", f"python-{os.getpid()}")
LAST_WORDS = 10  # seconds to wait for an absent server when the worker stops
stopping = threading.Event()


def token():
    file = os.environ.get("TES_TOKEN_FILE")
    return open(file).read().strip() if file else os.environ["TES_TOKEN"]


def call(path, body, patience=90):
    """Posts until there is an answer: every call may be repeated. 401 means an expired token,
    429 and 5xx a busy server: the lease is not concerned."""
    while True:
        pause, told = 1, "no answer"
        request = urllib.request.Request(URL + path, json.dumps(body).encode(), {
            "Authorization": "Bearer " + token(), "Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=patience) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refusal:
            if refusal.code not in (401, 429) and refusal.code < 500:
                return refusal.code, json.load(refusal)
            pause, told = int(refusal.headers.get("Retry-After") or 1), refusal.code
        except OSError as lost:  # the answer was lost, or the server is away
            told = lost
        print(WORKER, "asks again:", told, file=sys.stderr, flush=True)
        if stopping.is_set() and time.monotonic() > stopped_at + LAST_WORDS:
            return 0, {}
        time.sleep(min(pause, LAST_WORDS))


def work(message, checkpoint, note):
    """Executes the task. note(progress, checkpoint) raises Cancelled if the task was cancelled or lost."""
    pages = message["input"].get("pages", 3)
    for page in range(checkpoint.get("page", 0), pages):
        time.sleep(message["input"].get("secondsPerPage", 0))
        note({"percent": 100 * (page + 1) // pages}, {"page": page + 1})
    return {"pages": pages, "by": WORKER}


class Cancelled(Exception):
    """The task was cancelled, or another attempt has it."""


def run(lease):
    path, lost, done = "/" + lease["leaseToken"], threading.Event(), threading.Event()

    def beat(body):
        status, answer = call(path + "/heartbeat", body)
        if status in (404, 409, 410) or answer.get("directive") == "CANCEL":
            lost.set()

    def note(progress, checkpoint):
        beat({"progress": progress, "checkpoint": checkpoint})
        if lost.is_set() or stopping.is_set():
            raise Cancelled

    def keep():  # three heartbeats in each visibility timeout
        while not done.wait(lease["message"]["visibilityTimeout"] / 3000):
            beat({})

    threading.Thread(target=keep, daemon=True).start()
    try:
        end, body = "/complete", {"output": work(lease["message"], lease.get("checkpoint") or {}, note)}
    except Cancelled:
        end, body = "/release", {"reason": "the worker stops"}
    except Exception as failure:  # the task's retry policy decides what follows
        end, body = "/fail", {"errorCode": type(failure).__name__, "errorMessage": str(failure)[:2000]}
    finally:
        done.set()
    if not lost.is_set():
        print(WORKER, lease["message"]["taskId"], end, *call(path + end, body), flush=True)


def stop(*_):
    global stopped_at
    stopped_at = time.monotonic()
    stopping.set()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop), signal.signal(signal.SIGINT, stop)
    select = [{"queue": q, **({"taskDefinitionIds": sys.argv[1:]} if sys.argv[1:] else {})}
              for q in ("task-execution-automated", "task-execution-integration")]
    while not stopping.is_set():
        status, answer = call("", {"workerId": WORKER, "requestId": str(uuid.uuid4()), "waitMs": 5000, "select": select})
        if status >= 400:  # 403 or 422: a repetition would not help
            sys.exit(f"{status}: {answer.get('detail', answer)}")
        for lease in answer.get("leases", []):
            run(lease)
