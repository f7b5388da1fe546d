package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/mmserve/mmserve/client"
)

// A client that uploads its images gets the answers of one that sends them, from servers that keep media and others.
func TestClientUploads(t *testing.T) {
	image, err := os.ReadFile(filepath.Join("..", "..", "model", "tiny-vlm", "samples", "sample0.png"))
	if err != nil {
		t.Fatal(err)
	}
	in := client.Chat(client.User(client.ImageBytes(image), client.Text("Describe the image.")))
	for name, args := range map[string][]string{"kept": nil, "not kept": {"--media-bytes=0"}} {
		t.Run(name, func(t *testing.T) {
			addr := serveAt(t, args...)
			plain, err := client.Dial(addr)
			if err != nil {
				t.Fatal(err)
			}
			defer plain.Close()
			want, err := plain.Generate(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			c, err := client.Dial(addr, client.WithUploads("", 100))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for range 2 {
				out, err := c.Generate(t.Context(), in)
				if err != nil || out.GetText() != want.GetText() {
					t.Errorf("%q, %v; want %q", out.GetText(), err, want.GetText())
				}
			}
			f, err := os.Open(filepath.Join("..", "..", "model", "tiny-vlm", "samples", "sample0.png"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			digest, err := c.Upload(t.Context(), "", f)
			if (err == nil) != (args == nil) {
				t.Errorf("upload: %q, %v", digest, err)
			}
			if err != nil {
				return
			}
			out, err := c.Generate(t.Context(),
				client.Chat(client.User(client.ImageDigest(digest), client.Text("Describe the image."))))
			if err != nil || out.GetText() != want.GetText() {
				t.Errorf("by digest: %q, %v; want %q", out.GetText(), err, want.GetText())
			}
		})
	}
}
