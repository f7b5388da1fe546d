package serving_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/mmserve/mmserve/model/modeltest"
	"github.com/mmserve/mmserve/serving"
)

// cost is what the images of parts cost, and why they are refused.
func cost(t *testing.T, s *serving.Service, parts []serving.Part) (tiles, tokens int, err error) {
	t.Helper()
	c, err := s.Count(t.Context(), &serving.Request{Prompt: &serving.Prompt{Parts: parts}})
	if err != nil {
		return 0, 0, err
	}
	for _, l := range c.Images {
		tiles += l.Grid.Tiles()
		tokens += l.Tokens
		if l.ScaledWidth < 1 || l.ScaledHeight < 1 {
			t.Errorf("an image is seen at %d×%d", l.ScaledWidth, l.ScaledHeight)
		}
	}
	return tiles, tokens, nil
}

// holds tries budgets on parts that cost tiles and tokens with none: what they hold is left alone, what they
// do not is refused by name, or seen smaller, for Generate as for Count. It gives the number of images that
// could be made smaller.
func holds(t *testing.T, name string, parts []serving.Part,
	open func(serving.ServiceOptions) *serving.Service) (smaller int) {
	t.Helper()
	tiles, tokens, err := cost(t, open(serving.ServiceOptions{}), parts)
	if err != nil {
		t.Fatal(err)
	}
	for what, b := range map[string]serving.ImageBudget{
		"tiles": {Tiles: tiles}, "tokens": {Tokens: tokens}, "both": {Tiles: tiles, Tokens: tokens, Downscale: true},
	} {
		if gotTiles, gotTokens, err := cost(t, open(serving.ServiceOptions{ImageBudget: b}), parts); err != nil ||
			gotTiles != tiles || gotTokens != tokens {
			t.Errorf("%s, %s: %d tiles, %d tokens, %v; want %d and %d", name, what, gotTiles, gotTokens, err, tiles, tokens)
		}
	}
	for what, b := range map[string]serving.ImageBudget{
		"one tile less": {Tiles: max(tiles-1, 1)}, "one token less": {Tokens: tokens - 1}, "half": {Tokens: tokens / 2},
	} {
		if b.Tiles == tiles {
			continue
		}
		_, _, err := cost(t, open(serving.ServiceOptions{ImageBudget: b}), parts)
		wantError(t, name+", "+what, err, serving.Invalid, "input")
		b.Downscale = true
		s := open(serving.ServiceOptions{ImageBudget: b})
		gotTiles, gotTokens, err := cost(t, s, parts)
		switch told := (*serving.Error)(nil); {
		case err == nil:
			smaller++
			if b.Tiles > 0 && gotTiles > b.Tiles || b.Tokens > 0 && gotTokens > b.Tokens || gotTokens >= tokens {
				t.Errorf("%s, %s: %d tiles, %d tokens, of %d and %d", name, what, gotTiles, gotTokens, tiles, tokens)
			}
		case !errors.As(err, &told) || told.Kind != serving.Invalid:
			t.Errorf("%s, %s: %v", name, what, err)
		}
		sameCount(t, s, name+", "+what, parts)
	}
	return smaller
}

func TestImageBudget(t *testing.T) {
	modeltest.StartLibrary(t)
	large := serving.Part{Image: &serving.Image{Data: pngOf(t, 400, 300)}}
	small := serving.Part{Image: &serving.Image{Data: pngOf(t, 40, 30)}}
	smaller := map[string]int{}
	for _, family := range []string{"idefics3", "llava_onevision", "llava"} {
		if _, ok := modeltest.TinyCheckpoints[family]; !ok {
			t.Fatalf("there is no tiny checkpoint %s", family)
		}
		d := openFamily(t, family)
		open := func(o serving.ServiceOptions) *serving.Service { return service(d, o) }
		for i, parts := range [][]serving.Part{{large}, {large, {Text: "a"}, small}} {
			smaller[family] += holds(t, fmt.Sprint(family, i), parts, open)
		}
	}
	own := func(o serving.ServiceOptions) *serving.Service { return ownResolution(t, o) }
	if n := holds(t, "own resolution", []serving.Part{large, {Text: "a"}, small}, own); n != 2 {
		t.Errorf("of two budgets %d are held by smaller images", n)
	}
	if smaller["idefics3"] == 0 || smaller["llava_onevision"] == 0 || smaller["llava"] != 0 {
		t.Errorf("budgets held by smaller images: %v; want some where images are cut, none of one tile", smaller)
	}
}
