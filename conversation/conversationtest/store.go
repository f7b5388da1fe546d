// Package conversationtest holds what every conversation.Store does.
package conversationtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mmserve/mmserve/conversation"
)

// Opener opens a store of the test's own, empty at first: again with the same name it is the same.
type Opener func(t *testing.T, name string, o conversation.Options) conversation.Store

// Ring is master keys for tests, of the numbers given, the newest first.
func Ring(t testing.TB, numbers ...byte) *conversation.Ring {
	t.Helper()
	var keys [][]byte
	for _, n := range numbers {
		keys = append(keys, bytes.Repeat([]byte{n}, conversation.MasterKeyBytes))
	}
	r, err := conversation.NewRing(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Clock is a time that tests set.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock returns a clock that shows a time long past.
func NewClock() *Clock { return &Clock{now: time.Date(2001, 2, 3, 4, 5, 6, 7000, time.UTC)} }

// Now is conversation.Options.Now.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Add moves it.
func (c *Clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// suite is a store in a test.
type suite struct {
	*testing.T
	conversation.Store
	ctx   context.Context
	clock *Clock
}

// TestStore holds a store to its contract.
func TestStore(t *testing.T, open Opener) {
	for _, c := range []struct {
		name   string
		test   func(*suite)
		limits conversation.Limits
	}{
		{name: "Messages", test: (*suite).messages},
		{name: "Images", test: (*suite).images},
		{name: "Keys", test: (*suite).appendKeys},
		{name: "Conflict", test: (*suite).conflict},
		{name: "Concurrent", test: (*suite).concurrent},
		{name: "List", test: (*suite).list},
		{name: "Info", test: (*suite).info},
		{name: "Fork", test: (*suite).fork},
		{name: "Correct", test: (*suite).correct},
		{name: "Delete", test: (*suite).delete},
		{name: "Apart", test: (*suite).apart},
		{name: "Restrict", test: (*suite).restrict},
		{name: "Hold", test: (*suite).hold},
		{name: "Retention", test: (*suite).retention},
		{name: "Erase", test: (*suite).erase},
		{name: "Subjects", test: (*suite).subjects},
		{name: "Invalid", test: (*suite).invalid},
		{name: "Limits", test: (*suite).limits, limits: conversation.Limits{
			Messages: 3, MessageBytes: 1000, ImageBytes: 500, SubjectBytes: 2500, Conversations: 2,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			clock := NewClock()
			s := open(t, c.name, conversation.Options{Master: Ring(t, 1), Limits: c.limits, Now: clock.Now})
			c.test(&suite{t, s, t.Context(), clock})
		})
	}
	t.Run("Rewrap", func(t *testing.T) { testRewrap(t, open) })
	t.Run("Reopen", func(t *testing.T) { testReopen(t, open) })
}

// alice is whom most tests are about.
var alice = conversation.Scope{Tenant: "acme", Subject: "alice"}

// Say is a message of a text.
func Say(role, text string) conversation.Message {
	return conversation.Message{Role: role, Parts: []conversation.Part{{Text: text}}}
}

// Show is a user's message with a text and images of the bytes given.
func Show(text string, images ...[]byte) conversation.Message {
	m := Say("user", text)
	for _, data := range images {
		m.Parts = append(m.Parts, conversation.Part{Image: &conversation.Image{Data: data, Detail: 2}})
	}
	return m
}

// kept is m as it comes back.
func kept(m conversation.Message, seq uint64, at time.Time) conversation.Message {
	m.Seq, m.Time = seq, at
	m.Parts = slices.Clone(m.Parts)
	for i, p := range m.Parts {
		if p.Image != nil {
			img := *p.Image
			img.Digest, img.Size, img.Data = sha256.Sum256(img.Data), int64(len(img.Data)), nil
			m.Parts[i].Image = &img
		}
	}
	return m
}

func (s *suite) create(of conversation.Scope) string {
	s.Helper()
	c, err := s.Create(s.ctx, of, conversation.New{})
	if err != nil {
		s.Fatal(err)
	}
	return c.ID
}

func (s *suite) append(of conversation.Scope, id string, list ...conversation.Message) conversation.Place {
	s.Helper()
	p, err := s.Append(s.ctx, of, id, conversation.Appended{Messages: list})
	if err != nil {
		s.Fatal(err)
	}
	return p
}

func (s *suite) get(of conversation.Scope, id string) (*conversation.Conversation, []conversation.Message) {
	s.Helper()
	c, list, err := s.Get(s.ctx, of, id, 0, 0)
	if err != nil {
		s.Fatal(err)
	}
	return c, list
}

func (s *suite) texts(of conversation.Scope, id string) (out []string) {
	s.Helper()
	_, list := s.get(of, id)
	for _, m := range list {
		out = append(out, m.Parts[0].Text)
	}
	return out
}

// fails holds that an error is the one that is wanted.
func (s *suite) fails(err, want error) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Errorf("got %v, want %v", err, want)
	}
}

func (s *suite) equal(got, want any) {
	s.Helper()
	if !reflect.DeepEqual(got, want) {
		s.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func (s *suite) subjectBytes(of conversation.Scope) int64 {
	s.Helper()
	r, err := s.Subject(s.ctx, of)
	if err != nil {
		s.Fatal(err)
	}
	return r.Bytes
}

func (s *suite) messages() {
	id := s.create(alice)
	began := s.clock.Now()
	first := []conversation.Message{
		Say("system", "Be brief."), Say("user", "Wie geht's? 你好 \x00 \u2028"),
		{Role: "assistant", ToolCalls: []byte(`[{"id":"x"}]`)},
		{Role: "tool", ToolCallID: "x", ToolName: "weather", Parts: []conversation.Part{{Text: "rain"}, {Text: ""}}},
	}
	s.equal(s.append(alice, id, first...), conversation.Place{Conversation: id, First: 1, Last: 4})
	s.clock.Add(time.Minute)
	s.equal(s.append(alice, id, Say("assistant", "It rains.")), conversation.Place{Conversation: id, First: 5, Last: 5})
	var want []conversation.Message
	for i, m := range first {
		want = append(want, kept(m, uint64(i+1), began))
	}
	want = append(want, kept(Say("assistant", "It rains."), 5, s.clock.Now()))
	c, list := s.get(alice, id)
	s.equal(list, want)
	if c.Messages != 5 || !c.Created.Equal(began) || !c.Updated.Equal(s.clock.Now()) || c.Bytes == 0 || c.ID != id {
		s.Errorf("the conversation is %+v", c)
	}
	if n := s.subjectBytes(alice); n != c.Bytes {
		s.Errorf("the subject has %d bytes, its one conversation %d", n, c.Bytes)
	}
	_, list, err := s.Get(s.ctx, alice, id, 2, 2)
	if err != nil {
		s.Fatal(err)
	}
	s.equal(list, want[2:4])
	_, list, err = s.Get(s.ctx, alice, id, 1<<64-1, 2)
	if err != nil || len(list) != 0 {
		s.Errorf("after the last possible number there are %d messages, %v", len(list), err)
	}
}

func (s *suite) images() {
	id := s.create(alice)
	cat, dog := bytes.Repeat([]byte("cat"), 10_000), []byte("dog")
	before := s.subjectBytes(alice)
	shown := Show("look", cat, dog)
	s.append(alice, id, shown)
	after := s.subjectBytes(alice)
	_, list := s.get(alice, id)
	s.equal(list, []conversation.Message{kept(shown, 1, s.clock.Now())})
	for _, want := range [][]byte{cat, dog} {
		if got, err := s.Image(s.ctx, alice, sha256.Sum256(want)); err != nil || !bytes.Equal(got, want) {
			s.Errorf("an image of %d bytes came back as %d, %v", len(want), len(got), err)
		}
	}
	if grown := after - before; grown < int64(len(cat)+len(dog)) || grown > int64(len(cat)+len(dog)+1000) {
		s.Errorf("images of %d bytes count as %d", len(cat)+len(dog), grown)
	}
	again := Say("user", "the same")
	again.Parts = append(again.Parts, conversation.Part{Image: list[0].Parts[1].Image})
	s.append(alice, id, again, Show("and here", cat))
	if grown := s.subjectBytes(alice) - after; grown > 1000 {
		s.Errorf("an image that is shown again counts %d bytes more", grown)
	}
	unknown := Say("user", "")
	unknown.Parts = []conversation.Part{{Image: &conversation.Image{Digest: [32]byte{1}, Size: 3}}}
	_, err := s.Append(s.ctx, alice, id, conversation.Appended{Messages: []conversation.Message{unknown}})
	s.fails(err, conversation.ErrInvalid)
	_, err = s.Image(s.ctx, alice, [32]byte{1})
	s.fails(err, conversation.ErrNotFound)
	if err := s.Delete(s.ctx, alice, id); err != nil {
		s.Fatal(err)
	}
	if _, err = s.Image(s.ctx, alice, sha256.Sum256(cat)); !errors.Is(err, conversation.ErrNotFound) {
		s.Errorf("an image that nothing shows any more: %v", err)
	}
	s.equal(s.subjectBytes(alice), before)
}

func (s *suite) appendKeys() {
	id, other := s.create(alice), s.create(alice)
	do := func(id, key, text string) (conversation.Place, error) {
		a := conversation.Appended{Messages: []conversation.Message{Say("user", text)}, Key: key}
		return s.Append(s.ctx, alice, id, a)
	}
	p, err := do(id, "k1", "one")
	s.equal([]any{p, err}, []any{conversation.Place{Conversation: id, First: 1, Last: 1}, nil})
	s.append(alice, id, Say("assistant", "two"))
	p, err = do(id, "k1", "one")
	s.equal([]any{p, err}, []any{conversation.Place{Conversation: id, First: 1, Last: 1, Again: true}, nil})
	_, err = do(id, "k1", "three")
	s.fails(err, conversation.ErrKeyReused)
	_, err = do(other, "k1", "one")
	s.fails(err, conversation.ErrKeyReused)
	s.equal(s.texts(alice, id), []string{"one", "two"})
	p, err = s.Locate(s.ctx, alice, "k1")
	s.equal([]any{p, err}, []any{conversation.Place{Conversation: id, First: 1, Last: 1, Again: true}, nil})
	for _, key := range []string{"", "k2", strings.Repeat("k", 1000)} {
		_, err = s.Locate(s.ctx, alice, key)
		s.fails(err, conversation.ErrNotFound)
	}
	bob := conversation.Scope{Tenant: "acme", Subject: "bob"}
	s.create(bob)
	_, err = s.Locate(s.ctx, bob, "k1")
	s.fails(err, conversation.ErrNotFound)
	if err := s.Delete(s.ctx, alice, id); err != nil {
		s.Fatal(err)
	}
	_, err = s.Locate(s.ctx, alice, "k1")
	s.fails(err, conversation.ErrNotFound)
}

func (s *suite) conflict() {
	id := s.create(alice)
	at := func(n uint64) error {
		a := conversation.Appended{Messages: []conversation.Message{Say("user", "x")}, After: &n}
		_, err := s.Append(s.ctx, alice, id, a)
		return err
	}
	s.fails(at(1), conversation.ErrConflict)
	s.fails(at(0), nil)
	s.fails(at(0), conversation.ErrConflict)
	s.fails(at(1), nil)
	s.equal(s.texts(alice, id), []string{"x", "x"})
}

// concurrent has many append at once: all of it is there, once, each in its order.
func (s *suite) concurrent() {
	const writers, each = 8, 10
	id := s.create(alice)
	var wg sync.WaitGroup
	errs := make([]error, writers)
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				m := []conversation.Message{Say("user", fmt.Sprint(w, " ", i)), Say("assistant", fmt.Sprint(w, " ", i, "."))}
				_, err := s.Append(s.ctx, alice, id, conversation.Appended{Messages: m, Key: fmt.Sprint(w, "-", i)})
				errs[w] = errors.Join(errs[w], err)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		s.Fatal(err)
	}
	next := make([]int, writers)
	all := s.texts(alice, id)
	for i := 0; i < len(all); i += 2 {
		var w, n int
		if _, err := fmt.Sscan(all[i], &w, &n); err != nil || all[i+1] != all[i]+"." || n != next[w] {
			s.Fatalf("message %d is %q, then %q", i+1, all[i], all[i+1])
		}
		next[w]++
	}
	if len(all) != 2*writers*each {
		s.Errorf("%d messages, want %d", len(all), 2*writers*each)
	}
}

func (s *suite) list() {
	list, next, err := s.List(s.ctx, alice, "", 0)
	if len(list) != 0 || next != "" || err != nil {
		s.Fatalf("without any there are %d conversations, %q, %v", len(list), next, err)
	}
	var ids []string
	for i := range 7 {
		ids = append(ids, s.create(alice))
		if i%2 == 0 { // some have the same time
			s.clock.Add(time.Second)
		}
	}
	s.append(alice, ids[0], Say("user", "newest now"))
	var got []string
	for from, pages := "", 0; ; pages++ {
		list, next, err := s.List(s.ctx, alice, from, 3)
		if err != nil || pages > 3 {
			s.Fatal(pages, err)
		}
		for _, c := range list {
			got = append(got, c.ID)
		}
		if from = next; next == "" {
			break
		}
	}
	if len(got) != 7 || got[0] != ids[0] && got[1] != ids[0] {
		s.Errorf("listed %d, the newest not first", len(got))
	}
	slices.Sort(got)
	slices.Sort(ids)
	s.equal(got, ids)
	id := strings.Repeat("0", 32)
	for _, from := range []string{"x", "1-", "1-00", "-", "1-" + id[1:], "99999999999999999999-" + id} {
		_, _, err = s.List(s.ctx, alice, from, 3)
		s.fails(err, conversation.ErrInvalid)
	}
}

func (s *suite) info() {
	n := conversation.New{
		Info:      conversation.Info{Title: "Rain", Metadata: map[string]string{"a": "b"}},
		Retention: conversation.Retention{Class: conversation.KeepDays, For: 24 * time.Hour},
	}
	c, err := s.Create(s.ctx, alice, n)
	if err != nil {
		s.Fatal(err)
	}
	now := s.clock.Now()
	s.equal(c, &conversation.Conversation{
		ID: c.ID, Created: now, Updated: now, Info: n.Info, Retention: n.Retention, Expires: now.Add(24 * time.Hour),
	})
	title := "Sun"
	changed, err := s.Update(s.ctx, alice, c.ID, conversation.Change{Title: &title})
	if err != nil {
		s.Fatal(err)
	}
	c.Info.Title = title
	s.equal(changed, c)
	forever := conversation.Change{Metadata: map[string]string{}, Retention: &conversation.Retention{}}
	changed, err = s.Update(s.ctx, alice, c.ID, forever)
	if err != nil {
		s.Fatal(err)
	}
	c.Info.Metadata, c.Retention, c.Expires = nil, conversation.Retention{}, time.Time{}
	got, _ := s.get(alice, c.ID)
	s.equal(got, c)
	s.equal(changed.Info.Title, c.Info.Title)
}

func (s *suite) fork() {
	id := s.create(alice)
	cat := []byte("a cat's image")
	s.append(alice, id, Show("one", cat), Say("assistant", "two"), Say("user", "three"))
	f, err := s.Fork(s.ctx, alice, id, 2, conversation.New{Info: conversation.Info{Title: "other"}})
	if err != nil {
		s.Fatal(err)
	}
	s.equal(f.Info, conversation.Info{Title: "other", ForkedFrom: id, ForkedAt: 2})
	_, was := s.get(alice, id)
	_, list := s.get(alice, f.ID)
	s.equal(list, was[:2])
	s.append(alice, f.ID, Say("user", "otherwise"))
	s.equal(s.texts(alice, f.ID), []string{"one", "two", "otherwise"})
	s.equal(s.texts(alice, id), []string{"one", "two", "three"})
	whole, err := s.Fork(s.ctx, alice, id, 0, conversation.New{})
	if err != nil {
		s.Fatal(err)
	}
	s.equal(whole.Messages, uint64(3))
	_, err = s.Fork(s.ctx, alice, id, 4, conversation.New{})
	s.fails(err, conversation.ErrInvalid)
	s.fails(s.Delete(s.ctx, alice, id), nil)
	if got, err := s.Image(s.ctx, alice, sha256.Sum256(cat)); err != nil || !bytes.Equal(got, cat) {
		s.Errorf("a fork's image went with the conversation it was forked from: %v", err)
	}
	s.fails(s.Delete(s.ctx, alice, f.ID), nil)
	s.fails(s.Delete(s.ctx, alice, whole.ID), nil)
	s.equal(s.subjectBytes(alice), int64(0))
}

func (s *suite) correct() {
	id := s.create(alice)
	cat, dog := []byte("a cat"), bytes.Repeat([]byte("a dog"), 100)
	s.append(alice, id, Show("I live in Bonn", cat), Say("assistant", "Nice."))
	s.clock.Add(time.Hour)
	m := Show("I live in Köln", dog)
	m.Seq = 1
	s.fails(s.Correct(s.ctx, alice, id, m), nil)
	_, list := s.get(alice, id)
	want := kept(m, 1, s.clock.Now().Add(-time.Hour))
	want.Corrected = s.clock.Now()
	s.equal(list[0], want)
	_, err := s.Image(s.ctx, alice, sha256.Sum256(cat))
	s.fails(err, conversation.ErrNotFound)
	_, err = s.Image(s.ctx, alice, sha256.Sum256(dog))
	s.fails(err, nil)
	c, _ := s.get(alice, id)
	s.equal(s.subjectBytes(alice), c.Bytes+int64(len(dog)))
	for _, seq := range []uint64{0, 3, 1 << 63} {
		m.Seq = seq
		s.fails(s.Correct(s.ctx, alice, id, m), conversation.ErrNotFound)
	}
}

func (s *suite) delete() {
	id := s.create(alice)
	s.append(alice, id, Say("user", "x"))
	s.fails(s.Delete(s.ctx, alice, id), nil)
	s.fails(s.Delete(s.ctx, alice, id), conversation.ErrNotFound)
	_, _, err := s.Get(s.ctx, alice, id, 0, 0)
	s.fails(err, conversation.ErrNotFound)
	_, err = s.Append(s.ctx, alice, id, conversation.Appended{Messages: []conversation.Message{Say("user", "x")}})
	s.fails(err, conversation.ErrNotFound)
	r, err := s.Subject(s.ctx, alice)
	s.equal([]any{r.Conversations, r.Bytes, err}, []any{int64(0), int64(0), nil})
}
