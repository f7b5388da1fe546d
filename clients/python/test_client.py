"""What the client does with a server: go test -run TestClientPython ./cmd/mmserve starts them and sets the variables."""
import os
import pathlib
import time
import unittest

import grpc

import mmserve
from mmserve.retry import retry_delay
from mmserve.v1 import mmserve_pb2 as pb

TARGET, BUSY, IMAGE, WANT = (os.environ.get(name, "") for name in ("TARGET", "BUSY", "IMAGE", "WANT"))
ANY = {"max_tokens": 60, "ignore_eos": True}  # on the busy server: 60 tokens of 10 ms


def fails(test, code, call):
    with test.assertRaises(grpc.RpcError) as caught:
        call()
    test.assertEqual(caught.exception.code(), code, caught.exception)
    return caught.exception


@unittest.skipUnless(TARGET, "TARGET names no server")
class ClientTest(unittest.TestCase):
    def test_answers(self):
        client = mmserve.Client(TARGET)
        self.assertEqual(client.caption(IMAGE), WANT)
        data = pathlib.Path(IMAGE).read_bytes()
        self.assertEqual(client.chat(data, "Describe the image."), WANT)
        texts = list(client.stream(pathlib.Path(IMAGE), "Describe the image."))
        self.assertEqual("".join(texts), WANT)
        self.assertGreater(len(texts), 1)
        self.assertLess(len(client.chat("red", max_tokens=1)), len(client.chat("red", max_tokens=20, ignore_eos=True)))

    def test_refusals_are_not_tried_again(self):
        error = fails(self, grpc.StatusCode.INVALID_ARGUMENT, lambda: mmserve.Client(TARGET).chat(b"no image"))
        self.assertIsNone(retry_delay(error))

    def test_waits_for_room(self):
        running = mmserve.Client(BUSY).stream("red", **ANY)
        next(running)
        full = fails(self, grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: mmserve.Client(BUSY, retries=0).chat("red"))
        self.assertGreater(retry_delay(full), 0)
        fails(self, grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: list(mmserve.Client(BUSY, retries=0).stream("red")))
        client = mmserve.Client(BUSY, retries=50)
        self.assertTrue(client.chat("red", max_tokens=3))
        self.assertTrue("".join(running))
        running = client.stream("red", **ANY)
        next(running)
        self.assertTrue("".join(client.stream("red", max_tokens=3)))
        running.close()

    def test_closing_cancels(self):
        client = mmserve.Client(BUSY, retries=50)
        running = client.stream("red", max_tokens=450, ignore_eos=True)  # 4.5 s
        next(running)
        running.close()
        began = time.monotonic()
        client.chat("red", max_tokens=1)
        self.assertLess(time.monotonic() - began, 4)

    def test_timeout(self):
        client = mmserve.Client(BUSY, timeout=0.3, retries=50)
        fails(self, grpc.StatusCode.DEADLINE_EXCEEDED,
              lambda: client.call(client.stub.Generate, mmserve.request("red", max_tokens=450, ignore_eos=True)))

    def test_key_stays_here(self):
        for target in ("10.0.0.1:80", "mm.example:443", "localhost.example:80", "127.0.0.1:80.example", "localhost:1\n", ""):
            with self.assertRaises(ValueError, msg=target):
                mmserve.Client(target, key="secret")
        tls = grpc.ssl_channel_credentials()
        for target, credentials in (("localhost:1", None), ("unix:///s", None), ("mm.example:443", tls)):
            client = mmserve.Client(target, key="secret", tls=credentials)
            self.assertEqual(client.metadata, [("authorization", "Bearer secret")])

    @unittest.skipUnless(os.environ.get("SECURE"), "SECURE names no server")
    def test_tls_and_key(self):
        tls = grpc.ssl_channel_credentials(pathlib.Path(os.environ["ROOTS"]).read_bytes())
        client = mmserve.Client(os.environ["SECURE"], key=os.environ["KEY"], tls=tls)
        self.assertEqual(client.caption(IMAGE), WANT)
        wrong = mmserve.Client(os.environ["SECURE"], key="wrong", tls=tls)
        fails(self, grpc.StatusCode.UNAUTHENTICATED, lambda: wrong.caption(IMAGE))


if __name__ == "__main__":
    unittest.main()
