package conversationtest

import (
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/conversation"
)

// apart holds that nobody reaches what is another's: every call with another scope is as if there was nothing.
func (s *suite) apart() {
	id := s.create(alice)
	s.append(alice, id, Show("secret", []byte("image")))
	for _, other := range []conversation.Scope{
		{Tenant: "acme", Subject: "bob"}, {Tenant: "other", Subject: "alice"}, {Tenant: "acme"}, {},
		{Tenant: "acmea", Subject: "lice"}, {Tenant: "acme", Subject: "bob", Purpose: conversation.ForOperator},
	} {
		for _, exists := range []bool{false, true} {
			if exists {
				s.create(other)
			}
			_, _, err := s.Get(s.ctx, other, id, 0, 0)
			s.fails(err, conversation.ErrNotFound)
			_, err = s.Append(s.ctx, other, id, conversation.Appended{Messages: []conversation.Message{Say("user", "x")}})
			s.fails(err, conversation.ErrNotFound)
			_, err = s.Image(s.ctx, other, sha256.Sum256([]byte("image")))
			s.fails(err, conversation.ErrNotFound)
			_, err = s.Fork(s.ctx, other, id, 0, conversation.New{})
			s.fails(err, conversation.ErrNotFound)
			_, err = s.Update(s.ctx, other, id, conversation.Change{})
			s.fails(err, conversation.ErrNotFound)
			m := Say("user", "x")
			m.Seq = 1
			s.fails(s.Correct(s.ctx, other, id, m), conversation.ErrNotFound)
			s.fails(s.Delete(s.ctx, other, id), conversation.ErrNotFound)
			did, err := s.Expire(s.ctx, other, id, s.clock.Now().Add(time.Hour))
			s.equal([]any{did, err}, []any{false, nil})
			list, _, err := s.List(s.ctx, other, "", 0)
			s.fails(err, nil)
			if slices.ContainsFunc(list, func(c conversation.Conversation) bool { return c.ID == id }) {
				s.Errorf("%+v lists another's conversation", other)
			}
		}
		if s.Pseudonym(other) == s.Pseudonym(alice) {
			s.Errorf("%+v has alice's pseudonym", other)
		}
	}
	s.equal(s.texts(alice, id), []string{"secret"})
}

// restrict holds that no call reads or uses what is restricted but the subject's own.
func (s *suite) restrict() {
	self, operator := alice, alice
	self.Purpose, operator.Purpose = conversation.ForSubject, conversation.ForOperator
	id, open := s.create(alice), s.create(alice)
	s.append(alice, id, Show("secret", []byte("image")))
	if _, err := s.Append(s.ctx, alice, id, conversation.Appended{
		Messages: []conversation.Message{Say("user", "x")}, Key: "key"}); err != nil {
		s.Fatal(err)
	}
	restricted, active := conversation.Restricted, conversation.Active
	refused := func(of conversation.Scope) {
		s.Helper()
		_, _, err := s.Get(s.ctx, of, id, 0, 0)
		s.fails(err, conversation.ErrRestricted)
		_, err = s.Append(s.ctx, of, id, conversation.Appended{Messages: []conversation.Message{Say("user", "x")}})
		s.fails(err, conversation.ErrRestricted)
		_, err = s.Fork(s.ctx, of, id, 0, conversation.New{})
		s.fails(err, conversation.ErrRestricted)
		m := Say("user", "x")
		m.Seq = 1
		s.fails(s.Correct(s.ctx, of, id, m), conversation.ErrRestricted)
		if _, err = s.Image(s.ctx, of, sha256.Sum256([]byte("image"))); err == nil {
			s.Error("a restricted image was read")
		}
		list, _, err := s.List(s.ctx, of, "", 0)
		if slices.ContainsFunc(list, func(c conversation.Conversation) bool { return c.ID == id }) {
			s.Errorf("a restricted conversation is listed, %v", err)
		}
	}
	if _, err := s.Update(s.ctx, operator, id, conversation.Change{State: &restricted}); err != nil {
		s.Fatal(err)
	}
	refused(alice)
	refused(operator)
	s.equal(s.texts(self, id)[0], "secret")
	s.append(alice, open, Say("user", "the others go on"))
	if _, err := s.Update(s.ctx, operator, id, conversation.Change{State: &active}); err != nil {
		s.Fatal(err)
	}
	r, err := s.SetSubject(s.ctx, operator, conversation.SubjectChange{State: &restricted})
	s.equal([]any{r.State, err}, []any{restricted, nil})
	refused(alice)
	refused(operator)
	_, err = s.Create(s.ctx, alice, conversation.New{})
	s.fails(err, conversation.ErrRestricted)
	_, err = s.Locate(s.ctx, alice, "key")
	s.fails(err, conversation.ErrRestricted)
	s.equal(s.texts(self, id)[0], "secret")
	if got, err := s.Image(s.ctx, self, sha256.Sum256([]byte("image"))); string(got) != "image" || err != nil {
		s.Errorf("the subject's own image: %v", err)
	}
	list, _, err := s.List(s.ctx, self, "", 0)
	s.equal([]any{len(list), err}, []any{2, nil})
	m := Say("user", "corrected")
	m.Seq = 1
	s.fails(s.Correct(s.ctx, self, id, m), nil)
	s.fails(s.Delete(s.ctx, operator, id), nil)
}

func (s *suite) hold() {
	yes, no := true, false
	id := s.create(alice)
	s.append(alice, id, Say("user", "evidence"))
	m := Say("user", "forged")
	m.Seq = 1
	protected := func() {
		s.Helper()
		s.fails(s.Delete(s.ctx, alice, id), conversation.ErrHeld)
		s.fails(s.Correct(s.ctx, alice, id, m), conversation.ErrHeld)
		_, err := s.Erase(s.ctx, alice)
		s.fails(err, conversation.ErrHeld)
		s.equal(s.texts(alice, id), []string{"evidence"})
	}
	for _, hold := range []*bool{&yes, &no} {
		if _, err := s.Update(s.ctx, alice, id, conversation.Change{Hold: hold}); err != nil {
			s.Fatal(err)
		}
		if *hold {
			protected()
		}
	}
	for _, hold := range []*bool{&yes, &no} {
		if _, err := s.SetSubject(s.ctx, alice, conversation.SubjectChange{Hold: hold}); err != nil {
			s.Fatal(err)
		}
		if *hold {
			protected()
		}
	}
	s.fails(s.Delete(s.ctx, alice, id), nil)
}

func (s *suite) retention() {
	keep := func(r conversation.Retention) string {
		s.Helper()
		c, err := s.Create(s.ctx, alice, conversation.New{Retention: r})
		if err != nil {
			s.Fatal(err)
		}
		return c.ID
	}
	day := 24 * time.Hour
	forever := keep(conversation.Retention{})
	session := keep(conversation.Retention{Class: conversation.KeepSession, For: time.Hour})
	days := keep(conversation.Retention{Class: conversation.KeepDays, For: 30 * day})
	held := keep(conversation.Retention{Class: conversation.KeepSession, For: time.Hour})
	yes, no := true, false
	if _, err := s.Update(s.ctx, alice, held, conversation.Change{Hold: &yes}); err != nil {
		s.Fatal(err)
	}
	due := func() (ids []string) {
		s.Helper()
		list, err := s.Due(s.ctx, s.clock.Now(), 10)
		if err != nil {
			s.Fatal(err)
		}
		for _, d := range list {
			if d.Scope.Tenant != alice.Tenant || d.Scope.Subject != alice.Subject || d.Expires.After(s.clock.Now()) {
				s.Errorf("due is %+v", d)
			}
			ids = append(ids, d.ID)
		}
		return ids
	}
	s.equal(due(), []string(nil))
	s.clock.Add(59 * time.Minute)
	s.append(alice, session, Say("user", "still here"))
	s.clock.Add(59 * time.Minute)
	s.equal(due(), []string(nil))
	did, err := s.Expire(s.ctx, alice, session, s.clock.Now())
	s.equal([]any{did, err}, []any{false, nil})
	s.clock.Add(time.Minute)
	s.equal(due(), []string{session})
	for _, id := range []string{held, days, forever, "conv_x", session} {
		did, err := s.Expire(s.ctx, alice, id, s.clock.Now())
		s.equal([]any{id, did, err}, []any{id, id == session, nil})
	}
	n, err := s.Retain(s.ctx, "other", conversation.Retention{Class: conversation.KeepDays, For: time.Minute})
	s.equal([]any{n, err, due()}, []any{int64(0), nil, []string(nil)})
	n, err = s.Retain(s.ctx, "acme", conversation.Retention{Class: conversation.KeepDays, For: time.Minute})
	s.equal([]any{n, err, due()}, []any{int64(1), nil, []string{days}})
	if _, err := s.Update(s.ctx, alice, held, conversation.Change{Hold: &no}); err != nil {
		s.Fatal(err)
	}
	s.equal(due(), []string{days, held})
	for _, r := range []conversation.Retention{
		{Class: conversation.KeepDays}, {For: time.Hour}, {Class: conversation.KeepDays, For: -1}, {Class: 9, For: time.Hour},
		{Class: conversation.KeepDays, For: 200 * 366 * day},
	} {
		_, err := s.Create(s.ctx, alice, conversation.New{Retention: r})
		s.fails(err, conversation.ErrInvalid)
	}
}

func (s *suite) erase() {
	_, err := s.Erase(s.ctx, alice)
	s.fails(err, conversation.ErrNotFound)
	id := s.create(alice)
	s.create(alice)
	s.append(alice, id, Show("secret", []byte("image")), Say("assistant", "x"))
	bob := conversation.Scope{Tenant: "acme", Subject: "bob"}
	other := s.create(bob)
	s.append(bob, other, Show("bob's", []byte("image")))
	e, err := s.Erase(s.ctx, alice)
	s.equal([]any{e, err}, []any{conversation.Erased{Conversations: 2, Messages: 2, Images: 1}, nil})
	_, _, err = s.Get(s.ctx, alice, id, 0, 0)
	s.fails(err, conversation.ErrNotFound)
	_, err = s.Subject(s.ctx, alice)
	s.fails(err, conversation.ErrNotFound)
	s.equal(s.texts(bob, other), []string{"bob's"})
	fresh := s.create(alice) // another subject of the same name
	_, _, err = s.Get(s.ctx, alice, id, 0, 0)
	s.fails(err, conversation.ErrNotFound)
	s.append(alice, fresh, Say("user", "anew"))
	s.equal(s.texts(alice, fresh), []string{"anew"})
	n, err := s.Sweep(s.ctx)
	s.equal([]any{n, err}, []any{int64(0), nil})
}

func (s *suite) subjects() {
	yes, objections := true, conversation.NoCaching|conversation.NoTraining
	if _, err := s.SetSubject(s.ctx, alice, conversation.SubjectChange{Hold: &yes, Objections: &objections}); err != nil {
		s.Fatal(err)
	}
	s.append(alice, s.create(alice), Say("user", "x"))
	for _, name := range []string{"bob", "", "eve"} {
		s.create(conversation.Scope{Tenant: "acme", Subject: name})
	}
	s.create(conversation.Scope{Tenant: "other", Subject: "mallory"})
	var names []string
	for from := ""; ; {
		list, next, err := s.Subjects(s.ctx, "acme", from, 3)
		if err != nil {
			s.Fatal(err)
		}
		for _, r := range list {
			names = append(names, r.Subject)
			if r.Subject == "alice" {
				want, err := s.Subject(s.ctx, alice)
				if err != nil {
					s.Fatal(err)
				}
				want.Purpose = r.Purpose
				s.equal(&r, want)
				s.equal([]any{r.Hold, r.Objections, r.Conversations, r.Created}, []any{true, objections, int64(1), s.clock.Now()})
			}
		}
		if from = next; next == "" {
			break
		}
	}
	slices.Sort(names)
	s.equal(names, []string{"", "alice", "bob", "eve"})
	_, _, err := s.Subjects(s.ctx, "acme", "x", 3)
	s.fails(err, conversation.ErrInvalid)
}

func (s *suite) invalid() {
	id := s.create(alice)
	bad := func(list ...conversation.Message) {
		s.Helper()
		_, err := s.Append(s.ctx, alice, id, conversation.Appended{Messages: list})
		s.fails(err, conversation.ErrInvalid)
	}
	bad()
	bad(Say("developer", "x"))
	bad(Say("user", "\xff"))
	bad(conversation.Message{Role: "user", Parts: make([]conversation.Part, conversation.MaxParts+1)})
	both := Show("", []byte("x"))
	both.Parts[1].Text = "x"
	bad(both)
	bad(conversation.Message{Role: "user", Parts: []conversation.Part{{Image: &conversation.Image{}}}})
	bad(make([]conversation.Message, conversation.MaxAppend+1)...)
	long := conversation.Scope{Tenant: strings.Repeat("x", conversation.MaxNameBytes+1)}
	_, err := s.Create(s.ctx, long, conversation.New{})
	s.fails(err, conversation.ErrInvalid)
	title := strings.Repeat("x", conversation.MaxInfoBytes+1)
	_, err = s.Create(s.ctx, alice, conversation.New{Info: conversation.Info{Title: title}})
	s.fails(err, conversation.ErrInvalid)
	wide := "conv_" + strings.Repeat("é", 16)
	for _, id := range []string{"", "x", "conv_", id + "0", strings.ToUpper(id), wide, id[:len(id)-1] + "g"} {
		_, _, err := s.Get(s.ctx, alice, id, 0, 0)
		s.fails(err, conversation.ErrNotFound)
	}
	s.equal(len(s.texts(alice, id)), 0)
}

func (s *suite) limits() {
	id := s.create(alice)
	over := func(what string, err error) {
		s.Helper()
		var e *conversation.LimitError
		if !errors.As(err, &e) || e.What != what {
			s.Errorf("got %v, want the limit of %s", err, what)
		}
	}
	try := func(m ...conversation.Message) error {
		_, err := s.Append(s.ctx, alice, id, conversation.Appended{Messages: m})
		return err
	}
	over("messages of a conversation", try(Say("user", "1"), Say("user", "2"), Say("user", "3"), Say("user", "4")))
	s.fails(try(Say("user", "1"), Say("user", "2")), nil)
	over("messages of a conversation", try(Say("user", "3"), Say("user", "4")))
	over("bytes of a message", try(Say("user", strings.Repeat("x", 1000))))
	over("bytes of an image", try(Show("x", make([]byte, 501))))
	s.fails(try(Show("x", make([]byte, 500))), nil)
	other := s.create(alice)
	_, err := s.Create(s.ctx, alice, conversation.New{})
	over("conversations of a subject", err)
	id = other
	s.fails(try(Say("user", strings.Repeat("x", 900))), nil)
	before := s.subjectBytes(alice)
	over("bytes of a subject", try(Say("user", strings.Repeat("x", 900))))
	s.equal(s.subjectBytes(alice), before)
	s.equal(len(s.texts(alice, id)), 1)
}

// testRewrap holds that master keys change while the store goes on, and that the old one is of no use afterwards.
func testRewrap(t *testing.T, open Opener) {
	clock := NewClock()
	o := conversation.Options{Master: Ring(t, 1), Now: clock.Now}
	s := &suite{t, open(t, "Rewrap", o), t.Context(), clock}
	id := s.create(alice)
	s.append(alice, id, Say("user", "hello"))
	for i := range 5 {
		s.create(conversation.Scope{Tenant: "acme", Subject: string(rune('a' + i))})
	}
	pseudonym := s.Pseudonym(alice)
	o.Master = Ring(t, 2, 1)
	both := &suite{t, open(t, "Rewrap", o), t.Context(), clock} // beside the one that knows the old key alone
	both.equal(both.texts(alice, id), []string{"hello"})
	n, err := both.Rewrap(t.Context())
	both.equal([]any{n, err}, []any{int64(7), nil}) // six subjects' and that of hashes
	n, err = both.Rewrap(t.Context())
	both.equal([]any{n, err}, []any{int64(0), nil})
	s.append(alice, id, Say("assistant", "still here")) // its key is in memory
	o.Master = Ring(t, 2)
	fresh := &suite{t, open(t, "Rewrap", o), t.Context(), clock}
	fresh.equal(fresh.texts(alice, id), []string{"hello", "still here"})
	fresh.equal(fresh.Pseudonym(alice), pseudonym)
}

// testReopen holds that all is there after another opening, and that another master key opens nothing.
func testReopen(t *testing.T, open Opener) {
	clock := NewClock()
	o := conversation.Options{Master: Ring(t, 1), Now: clock.Now}
	s := &suite{t, open(t, "Reopen", o), t.Context(), clock}
	id := s.create(alice)
	s.append(alice, id, Show("hello", []byte("image")))
	want, wantList := s.get(alice, id)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := &suite{t, open(t, "Reopen", o), t.Context(), clock}
	got, list := again.get(alice, id)
	again.equal(got, want)
	again.equal(list, wantList)
}
