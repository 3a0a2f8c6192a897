#!/usr/bin/env python3
"""A tes worker with nothing but Python's standard library.

    TES_URL=http://127.0.0.1:8080 TES_TOKEN=... python3 worker.py [definition ...]

Ctrl-C or SIGTERM gives back what is being worked on. Replace work().
"""
import json, os, signal, sys, threading, time, urllib.error, urllib.request, uuid

URL = os.environ.get("TES_URL", "http://127.0.0.1:8080") + "/api/internal/leases"
WORKER = os.environ.get("WORKER_ID", f"python-{os.getpid()}")
stopping = threading.Event()


def call(path, body, patience=90):
    """Posts, and posts again until it is answered: every call may be repeated."""
    while True:
        request = urllib.request.Request(URL + path, json.dumps(body).encode(), {
            "Authorization": "Bearer " + os.environ["TES_TOKEN"], "Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=patience) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refusal:
            if refusal.code < 500:
                return refusal.code, json.load(refusal)
        except OSError:
            pass  # the answer was lost, or the server is away
        if stopping.wait(1):
            return 0, {}


def work(message, checkpoint, note):
    """Does the task. note(progress, checkpoint) raises Cancelled when nobody wants it."""
    pages = message["input"].get("pages", 3)
    for page in range(checkpoint.get("page", 0), pages):
        time.sleep(message["input"].get("secondsPerPage", 0))
        note({"percent": 100 * (page + 1) // pages}, {"page": page + 1})
    return {"pages": pages, "by": WORKER}


class Cancelled(Exception):
    """Nobody wants the result any more: cancelled, or somebody else's by now."""


def run(lease):
    path, lost = "/" + lease["leaseToken"], threading.Event()

    def beat(body):
        status, answer = call(path + "/heartbeat", body)
        if status >= 400 or answer.get("directive") == "CANCEL":
            lost.set()

    def note(progress, checkpoint):
        beat({"progress": progress, "checkpoint": checkpoint})
        if lost.is_set() or stopping.is_set():
            raise Cancelled

    done = threading.Event()

    def keep():  # three heartbeats in each visibility timeout
        while not done.wait(lease["message"]["visibilityTimeout"] / 3000):
            beat({})

    heart = threading.Thread(target=keep, daemon=True)
    heart.start()
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


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    select = [{"queue": q, **({"taskDefinitionIds": sys.argv[1:]} if sys.argv[1:] else {})}
              for q in ("task-execution-automated", "task-execution-integration")]
    while not stopping.is_set():
        status, answer = call("", {"workerId": WORKER, "requestId": str(uuid.uuid4()), "waitMs": 5000, "select": select})
        if status >= 400:
            sys.exit(f"{status}: {answer.get('detail', answer)}")
        for lease in answer.get("leases", []):
            run(lease)
