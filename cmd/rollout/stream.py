"""Sends streams at a rate through gRPC's own client with a service config, and prints a JSON line for each that ended."""
import json
import sys
import threading
import time

import grpc

clients, target, config, rate, streams, tokens, prefix = sys.argv[1:]
sys.path.insert(0, clients + "/python")
from mmserve.v1 import mmserve_pb2 as pb, mmserve_pb2_grpc as rpc  # noqa: E402

channel = grpc.insecure_channel(target, options=[
    ("grpc.service_config", open(config).read()),
    ("grpc.per_rpc_retry_buffer_size", 64 << 20),
])
stub = rpc.InferenceServiceStub(channel)
lock = threading.Lock()


def milliseconds():
    return time.time() * 1000


def one(index):
    o = {"id": f"{prefix}-{index}", "code": "OK", "sent": milliseconds(), "first": 0, "starts": 0, "finishes": 0,
         "received": 0, "completion": 0}
    request = pb.GenerateRequest(
        request_id=o["id"], max_tokens=int(tokens), ignore_eos=True, prompt=pb.Prompt(parts=[pb.Part(text="red")]))
    try:
        for event in stub.GenerateStream(request, timeout=60):
            o["first"] = o["first"] or milliseconds()
            o["starts"] += event.HasField("start")
            o["received"] += event.delta.tokens
            if event.HasField("finish"):
                o["finishes"] += 1
                o["completion"] += event.finish.usage.completion_tokens
    except grpc.RpcError as error:
        o["code"], o["error"] = error.code().name, error.details()
    o["ended"] = milliseconds()
    with lock:
        print(json.dumps(o), flush=True)


calls, began = [], time.monotonic()
for i in range(int(streams)):
    time.sleep(max(0, began + i / float(rate) - time.monotonic()))
    calls.append(threading.Thread(target=one, args=(i,)))
    calls[-1].start()
for call in calls:
    call.join()
