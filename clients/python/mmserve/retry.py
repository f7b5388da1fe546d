"""How calls are spread over servers, and when one that a server had no room for is tried again."""
import json

import grpc

from mmserve.retry_pb2 import RetryInfo, Status

# As deploy/balancers/service-config.json of mmserve has it: gRPC tries again itself what is UNAVAILABLE before the first token.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": "mmserve.v1.InferenceService"},
    "methodConfig": [{
        "name": [{"service": "mmserve.v1.InferenceService"}],
        "retryPolicy": {
            "maxAttempts": 4, "initialBackoff": "0.2s", "maxBackoff": "3s", "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        },
    }],
}


def channel_options(target):
    """Options of a channel: a target that names several servers leaves out those whose health is not SERVING."""
    config = dict(SERVICE_CONFIG)
    if not target.startswith(("dns:", "ipv4:", "ipv6:")):
        del config["healthCheckConfig"]
    # A request that is larger than the buffer is not tried again; the default is 256 KiB, less than many images.
    return [("grpc.service_config", json.dumps(config)), ("grpc.per_rpc_retry_buffer_size", 64 << 20)]


def retry_delay(error):
    """Seconds after which the call that failed with a grpc.RpcError may be tried again; None if it may not."""
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return None
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in Status.FromString(value).details:
                if detail.type_url.endswith("/google.rpc.RetryInfo"):
                    return RetryInfo.FromString(detail.value).retry_delay.ToTimedelta().total_seconds()
    return None
