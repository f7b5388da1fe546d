"""When to try again a call that the server had no room for."""
from mmserve.retry_pb2 import RetryInfo, Status


def retry_delay(error):
    """Seconds after which the call that failed with a grpc.RpcError may be tried again; None if it may not."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in Status.FromString(value).details:
                if detail.type_url.endswith("/google.rpc.RetryInfo"):
                    return RetryInfo.FromString(detail.value).retry_delay.ToTimedelta().total_seconds()
    return None
