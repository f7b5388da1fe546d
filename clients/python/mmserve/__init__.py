"""A client of mmserve: text and images in, text out. Errors are grpc.RpcError."""
import pathlib, random, re, time
import grpc
from mmserve.retry import channel_options, retry_delay
from mmserve.v1 import mmserve_pb2 as pb, mmserve_pb2_grpc

def request(*parts, **fields):
    """A question: each part is text (str), an image file (pathlib.Path) or an image (bytes). Fields are GenerateRequest's."""
    parts = [p.read_bytes() if isinstance(p, pathlib.Path) else p for p in parts]
    parts = [pb.Part(text=p) if isinstance(p, str) else pb.Part(image=pb.Image(data=p)) for p in parts]
    return pb.GenerateRequest(chat=pb.Chat(messages=[pb.Message(role=pb.ROLE_USER, parts=parts)]), **fields)

class Client:
    """tls is grpc.ssl_channel_credentials(...); without it an API key goes to this machine only. timeout is in seconds."""
    def __init__(self, target, key=None, tls=None, timeout=60, retries=5):
        if key and not tls and not re.match(r"(localhost|127\.0\.0\.1|\[::1\]):\d+\Z|unix:", target):
            raise ValueError("an API key needs TLS, except to this machine")
        options = channel_options(target) + ([("grpc.enable_http_proxy", 0)] if key and not tls else [])
        self.channel = grpc.secure_channel(target, tls, options) if tls else grpc.insecure_channel(target, options)
        self.stub, self.timeout, self.retries = mmserve_pb2_grpc.InferenceServiceStub(self.channel), timeout, retries
        self.metadata = [("authorization", "Bearer " + key)] if key else []
    def chat(self, *parts, **fields):
        return self.call(self.stub.Generate, request(*parts, **fields)).text
    def caption(self, image, **fields):
        return self.chat(pathlib.Path(image), "Describe the image.", **fields)
    def stream(self, *parts, **fields):
        events = self.call(self.stub.GenerateStream, request(*parts, **fields), begin=next)  # closing the generator cancels it
        try: yield from (e.delta.text for e in events if e.delta.text)
        finally: events.cancel()
    def call(self, method, message, begin=lambda answer: None):
        """Calls, within the timeout, until there is room. A stream that began is not tried again."""
        end = time.monotonic() + self.timeout
        for left in range(self.retries, -1, -1):
            try:
                begin(answer := method(message, timeout=max(end - time.monotonic(), 0), metadata=self.metadata))
                return answer
            except grpc.RpcError as error:
                delay = retry_delay(error)
                if delay is None or not left or time.monotonic() + 2 * delay > end: raise
                time.sleep(delay * random.uniform(1, 2))
