package serving

import (
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/conversation"
)

// history is a conversation of turns of two messages each, the first of which is message 1.
func history(turns int) (list []conversation.Message) {
	for i := range turns {
		list = append(list,
			conversation.Message{Seq: uint64(2*i + 1), Role: "user", Parts: []conversation.Part{{Text: "question"}}},
			conversation.Message{Seq: uint64(2*i + 2), Role: "assistant", Parts: []conversation.Part{{Text: "answer"}}})
	}
	return list
}

// TestCut holds that what is left of a growing history fits, has half of what fits at least, and begins where it began
// before for most turns.
func TestCut(t *testing.T) {
	const fits = 20 // messages
	was, moved := 0, 0
	for turns := 1; turns <= 200; turns++ {
		list := history(turns)
		first := max(0, len(list)-fits)
		first += first % 2
		at := 0
		if first > 0 {
			at = cut(turnsOf(list), first, max(first, len(list)-fits/2))
		}
		if n := len(list) - at; n > fits || turns > fits && n < fits/2-1 || at%2 != 0 {
			t.Fatalf("of %d messages those from %d are left", len(list), at)
		}
		if at < was {
			t.Fatalf("a history of %d turns begins at %d, before %d", turns, at, was)
		}
		if at != was {
			moved++
		}
		was = at
	}
	if moved > 200/3 {
		t.Errorf("the beginning moved %d times in 200 turns", moved)
	}
}

// TestCutHasAnEnd holds that there is a place to begin whatever fits: behind all, at last.
func TestCutHasAnEnd(t *testing.T) {
	for turns := range 5 {
		list := history(turns)
		for first := range len(list) + 1 {
			for most := range len(list) + 1 {
				if at := cut(turnsOf(list), first, most); at < first || at > len(list) {
					t.Errorf("%d turns that fit from %d on begin at %d", turns, first, at)
				}
			}
		}
	}
}

// turnWith is a turn of a service with limits.
func turnWith(images, text int) *turn {
	s := &Service{options: ServiceOptions{MaxImages: images, MaxTextBytes: text}}
	return &turn{life: &life{Service: s, model: &Model{MaxLen: 1 << 20}}}
}

func TestKeepImages(t *testing.T) {
	for total := range 30 {
		list := history(20)
		for i := range total {
			m := &list[2*(i%20)]
			m.Parts = append(slices.Clone(m.Parts), conversation.Part{Image: &conversation.Image{Size: 1}})
		}
		tn := turnWith(8, 1<<20)
		tn.keepImages(list, 2)
		left := 0
		newest := true
		for i := len(list) - 1; i >= 0; i-- {
			has := 0
			for _, p := range list[i].Parts {
				if p.Image != nil {
					has++
				}
			}
			if list[i].Role == "user" && i/2 < total && has == 0 {
				newest = false
			}
			if has > 0 && !newest {
				t.Errorf("of %d images an older one stays where a newer one went", total)
			}
			left += has
		}
		if left > 6 || total <= 6 && left != total || total > 6 && left < 2 {
			t.Errorf("of %d images %d are left, of at most 6", total, left)
		}
	}
}

func TestBound(t *testing.T) {
	said := []Message{{Role: "user", Parts: []Part{{Text: strings.Repeat("x", 50)}}}}
	for turns := range 40 {
		list := turnWith(8, 400).bound(nil, history(turns), said)
		text := 50
		for _, m := range list {
			_, n := sizeOf(m)
			text += n
		}
		if text > 400 || turns > 25 && text < 150 || len(list) > 0 && list[0].Role != "user" {
			t.Errorf("of %d turns %d messages with %d bytes are left, of at most 400", turns, len(list), text)
		}
	}
}
