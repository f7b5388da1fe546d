package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// TestChoicesOfEmbeddedModel holds that an answer that is among the choices is the one that is given without them, and
// the likeliest by their scores. The choices start without the space that the model's answers start with.
func TestChoicesOfEmbeddedModel(t *testing.T) {
	cl := startServer(t)
	colours := []string{
		"Red.", "Orange.", "Yellow.", "Green.", "Cyan.", "Blue.", "Purple.", "Pink.", "Black.", "White.", "Gray.", "Brown.",
		"Beige.", "Navy.",
	}
	same := map[string]int{}
	for _, q := range []struct {
		text    string
		choices []string
	}{
		{"Is there a circle?", []string{"Yes.", "No."}}, {"Is there a star in the image?", []string{"Yes.", "No."}},
		{"Is there a heart in the image?", []string{"No.", "Yes."}}, {"What color is the background?", colours},
		{"What color is the object in the center?", colours}, {"What color is the shape at the top?", colours},
	} {
		for i := range 10 {
			data, err := os.ReadFile(filepath.Join("..", "..", "model", "tiny-vlm", "samples",
				"sample"+string(rune('0'+i))+".png"))
			if err != nil {
				t.Fatal(err)
			}
			in := client.Chat(client.User(client.ImageBytes(data), client.Text(q.text)))
			in.MaxTokens, in.Sampling = proto.Uint32(16), &pb.Sampling{Temperature: proto.Float32(0)}
			free, err := cl.Generate(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			in.Constraint = &pb.Constraint{Kind: &pb.Constraint_Choices{Choices: &pb.Choices{Texts: q.choices, Scores: true}}}
			held, err := cl.Generate(t.Context(), in)
			if err != nil || !slices.Contains(q.choices, held.GetText()) || len(held.GetChoiceScores()) != len(q.choices) {
				t.Fatalf("%q about sample %d: %q, %v, %v", q.text, i, held.GetText(), held.GetChoiceScores(), err)
			}
			if !slices.Contains(q.choices, free.GetText()) {
				continue
			}
			best := q.choices[slices.Index(held.GetChoiceScores(), slices.Max(held.GetChoiceScores()))]
			if held.GetText() != free.GetText() || best != free.GetText() {
				t.Errorf("%q about sample %d: %q, the likeliest is %q, without choices %q", q.text, i, held.GetText(), best, free.GetText())
			}
			same[free.GetText()]++
		}
	}
	t.Logf("answers without choices that are among them: %v", same)
	total := 0
	for _, n := range same {
		total += n
	}
	if total < 20 || len(same) < 4 {
		t.Errorf("only %d answers are among the choices, %d different ones", total, len(same))
	}
}
