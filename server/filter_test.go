package server_test

import (
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

// upper puts capitals in the place of what it is given, byte for byte.
type upper struct{}

func (upper) Push(text string, emit func(serving.Piece)) *serving.End {
	emit(serving.Piece{Text: strings.ToUpper(text), Covers: len(text)})
	return nil
}

func (upper) Flush(func(serving.Piece)) *serving.End { return nil }

// A server's filters see every answer, and are told of which model it is and for which tenant.
func TestFilters(t *testing.T) {
	in := client.Chat(client.User(client.Text("red")))
	in.MaxTokens, in.N, in.Tenant = proto.Uint32(8), 2, "blue"
	plain := start(t, tinyVLM(t), newChain(4, 430, 4), server.Options{})
	want, err := plain.Generate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var asked []string
	filter := func(model, tenant string) serving.Stage {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, model+" "+tenant)
		return upper{}
	}
	none := func(string, string) serving.Stage { return nil }
	f := start(t, tinyVLM(t), newChain(4, 430, 4), server.Options{Filters: []serving.Filter{filter, none}})
	got, err := f.Generate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range got.GetChoices() {
		if plain := want.GetChoices()[i].GetText(); c.GetText() != strings.ToUpper(plain) || plain == c.GetText() {
			t.Errorf("answer %d is %q, without the filter %q", i, c.GetText(), plain)
		}
	}
	if len(asked) != 2 || asked[0] != want.GetModel()+" blue" || asked[1] != asked[0] {
		t.Errorf("stages were made for %q", asked)
	}
}
