"""python3 example.py TARGET IMAGE: a caption, then a streamed answer about the same image."""
import pathlib, sys
import mmserve

client = mmserve.Client(sys.argv[1], timeout=30)
print(client.caption(sys.argv[2]))
for text in client.stream(pathlib.Path(sys.argv[2]), "Describe the image.", max_tokens=32):
    print(text, end="", flush=True)
print()
