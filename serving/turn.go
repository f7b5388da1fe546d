package serving

import (
	"context"
	"errors"
	"math/bits"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/media"
	"github.com/mmserve/mmserve/vision"
)

// turn is a request that goes on with a conversation that the server keeps: its history stands before the request's
// messages, and with the answer these are added to it. One goroutine has it.
type turn struct {
	*life
	store conversation.Store
	of    conversation.Scope
	asked *Turn
	id    string // empty: a new conversation
	key   string
	last  uint64 // the number of the history's last message
	ended bool   // the conversation went on after the history
	said  []conversation.Message

	head    int      // messages at the beginning that stay: the request's instructions, and those of the system
	numbers []uint64 // of the history's messages after these
	files   []*media.File
	held    []*media.File // images of what is said, until they are added
	text    strings.Builder
}

// openTurn puts the history before the messages of a request that goes on with a conversation. It is nil for others.
func (l *life) openTurn(ctx context.Context, in *Request) (*turn, error) {
	if in.Turn == nil {
		return nil, nil
	}
	if l.options.Conversations == nil {
		return nil, noConversations()
	}
	if v := validateTurn(in); len(v) > 0 {
		return nil, v.Err()
	}
	t := &turn{
		life: l, store: l.options.Conversations, asked: in.Turn, id: in.Turn.Conversation, key: in.ID,
		of: conversation.Scope{Tenant: in.Tenant, Subject: in.Subject},
	}
	if err := t.readInTurn(ctx, in.Chat); err != nil {
		t.close()
		return nil, l.conversationError(ctx, err)
	}
	return t, nil
}

// readInTurn is read: as many histories are read at once as the process has cores, as no place in an engine is taken
// yet.
func (t *turn) readInTurn(ctx context.Context, in *Chat) error {
	select {
	case t.counting <- struct{}{}:
		defer func() { <-t.counting }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return t.read(ctx, in)
}

func validateTurn(in *Request) (v Violations) {
	validateName(&v, "tenant", in.Tenant)
	validateName(&v, "subject", in.Subject)
	switch {
	case in.Chat == nil:
		v.Add("conversation", "given with a prompt; want chat, or no conversation")
	case in.Chat.Continue:
		v.Add("chat.continue_final_message", "true; want false with a conversation")
	case len(in.Chat.Messages) > MaxMessages-1:
		v.Add("chat.messages", "%d; want at most %d with a conversation", len(in.Chat.Messages), MaxMessages-1)
	}
	if in.N > 1 {
		v.Add("n", "%d; want 1 with a conversation", in.N)
	}
	return v
}

// read puts the history before the messages of the request, which it notes.
func (t *turn) read(ctx context.Context, in *Chat) error {
	if t.key != "" && t.asked.Keep {
		if _, err := t.store.Locate(ctx, t.of, t.key); err == nil {
			return failed(AlreadyExists, "request_id: a request of this name was answered, and its answer kept: read it there")
		} else if !errors.Is(err, conversation.ErrNotFound) {
			return err
		}
	}
	head, tail, err := t.history(ctx)
	if err != nil {
		return err
	}
	unkept, said := in.Messages[:t.asked.Unkept], in.Messages[t.asked.Unkept:]
	for _, m := range said {
		t.said = append(t.said, storedMessage(m))
	}
	tail = t.bound(head, tail, in.Messages)
	t.keepImages(tail, countImages(in.Messages))
	t.head = len(unkept) + len(head)
	list := slices.Clone(unkept)
	for _, m := range slices.Concat(head, tail) {
		said, err := t.message(ctx, m)
		if err != nil {
			return err
		}
		list = append(list, said)
	}
	for _, m := range tail {
		t.numbers = append(t.numbers, m.Seq)
	}
	in.unkept, in.history = len(unkept), len(list)-len(unkept)
	in.Messages = append(list, said...)
	return nil
}

// history reads the messages of the system at the beginning, and the newest of the others, a page at most.
func (t *turn) history(ctx context.Context) (head, tail []conversation.Message, err error) {
	if t.asked.Previous != "" {
		p, err := t.store.Locate(ctx, t.of, t.asked.Previous)
		if err != nil {
			return nil, nil, err
		}
		t.id, t.last = p.Conversation, p.Last
	}
	if t.id == "" {
		return nil, nil, nil
	}
	c, first, err := t.store.Get(ctx, t.of, t.id, 0, maxSystem+1)
	if err != nil {
		return nil, nil, err
	}
	if t.asked.Previous == "" {
		t.last = c.Messages
	}
	t.ended = c.Messages > t.last
	later := func(m conversation.Message) bool { return m.Seq > t.last }
	first = slices.DeleteFunc(first, later)
	n := slices.IndexFunc(first, func(m conversation.Message) bool { return m.Role != system })
	if n < 0 {
		n = min(len(first), maxSystem)
	}
	head = first[:n]
	if t.last <= uint64(len(first)) {
		return head, first[n:], nil
	}
	tail, err = t.newest(ctx, max(uint64(n), t.last-min(t.last, conversation.MaxPage)))
	return head, tail, err
}

// pageOfHistory is how many messages of a history are read at once: each may be as large as a request.
const pageOfHistory = 16

// newest reads the history after a number from its end, as far back as a request may have it.
func (t *turn) newest(ctx context.Context, after uint64) (tail []conversation.Message, err error) {
	parts, text := 0, 0
	for end := t.last; end > after; {
		from := max(after, end-min(end, pageOfHistory))
		_, page, err := t.store.Get(ctx, t.of, t.id, from, int(end-from))
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			return nil, conversation.ErrConflict
		}
		for i := len(page) - 1; i >= 0; i-- {
			p, n := sizeOf(page[i])
			if parts, text = parts+p, text+n; parts > MaxParts || text > 2*t.options.MaxTextBytes {
				return append(page[i+1:], tail...), nil
			}
		}
		tail, end = append(page, tail...), from
	}
	return tail, nil
}

// system is the role of instructions; maxSystem is how many messages of them are kept at a conversation's beginning.
const (
	system    = "system"
	maxSystem = 8
)

// bound leaves out the oldest turns of a history that a request may not have beside what is said.
func (t *turn) bound(head, tail []conversation.Message, said []Message) []conversation.Message {
	messages, parts, text := len(head)+len(said), 0, 0
	for _, m := range said {
		parts += len(m.Parts)
		for _, p := range m.Parts {
			text += len(p.Text)
		}
	}
	for _, m := range head {
		n, bytes := sizeOf(m)
		parts, text = parts+n, text+bytes
	}
	fits := len(tail)
	for i := len(tail) - 1; i >= 0; i-- {
		n, bytes := sizeOf(tail[i])
		messages, parts, text = messages+1, parts+n, text+bytes
		// A token has a few bytes at least, in the mean: what has many more than the context cannot fit.
		if messages > MaxMessages || parts > MaxParts || text > min(t.options.MaxTextBytes, maxTokenBytes*t.model.MaxLen) {
			break
		}
		fits = i
	}
	if fits == 0 {
		return tail
	}
	return tail[cut(turnsOf(tail), fits, (fits+len(tail))/2):]
}

// maxTokenBytes is more than tokens of a text have in the mean.
const maxTokenBytes = 16

func sizeOf(m conversation.Message) (parts, text int) {
	for _, p := range m.Parts {
		text += len(p.Text)
	}
	return max(1, len(m.Parts)), text + len(m.ToolCalls) + len(m.ToolCallID) + len(m.ToolName)
}

// border is where a history may begin: at a message of a number, after one of another.
type border struct {
	at            int
	number, after uint64
}

// turnsOf lists where turns of a history begin, and its end.
func turnsOf(tail []conversation.Message) (list []border) {
	for i, m := range tail {
		if m.Role == "user" {
			list = append(list, border{i, m.Seq, m.Seq - 1})
		}
	}
	return append(list, border{len(tail), 1 << 62, 0})
}

// cut chooses where a history begins that fits from first on: at a turn between first and most, and there at the
// roundest number. As a conversation grows the choice stays the same for as long as it can, so that the prompt begins
// as that of the turn before did, whose keys and values are kept.
func cut(turns []border, first, most int) int {
	best, roundest := -1, -1
	for i, b := range turns {
		if b.at < first {
			continue
		}
		if best >= 0 && b.at > most {
			break
		}
		before := b.after
		if i > 0 {
			before = turns[i-1].number
		}
		if round := bits.Len64(b.number ^ before); round > roundest {
			best, roundest = b.at, round
		}
	}
	return best
}

// keepImages leaves out all but the newest images of a history, in place, as many as a request may show beside new
// ones.
func (t *turn) keepImages(tail []conversation.Message, fresh int) {
	most := max(0, t.maxImages()-fresh)
	var showing []border
	left, total := map[int]int{}, 0
	for i := len(tail) - 1; i >= 0; i-- {
		for _, p := range tail[i].Parts {
			if p.Image != nil {
				total++
			}
		}
		left[i] = total // from here on
	}
	if total <= most {
		return
	}
	first, half := len(tail), len(tail)
	for i := range tail {
		if left[i] <= most {
			first = min(first, i)
		}
		if left[i] <= most/2 {
			half = min(half, i)
		}
		showing = append(showing, border{i, tail[i].Seq, tail[i].Seq - 1})
	}
	from := cut(append(showing, border{len(tail), 1 << 62, 0}), first, max(first, half-1))
	shows := func(p conversation.Part) bool { return p.Image != nil }
	for i := range from {
		tail[i].Parts = slices.DeleteFunc(slices.Clone(tail[i].Parts), shows)
	}
}

func countImages(list []Message) (n int) {
	for _, m := range list {
		for _, p := range m.Parts {
			if p.Image != nil {
				n++
			}
		}
	}
	return n
}

// storedMessage is a message as it is kept. Its images have no bytes yet.
func storedMessage(m Message) conversation.Message {
	out := conversation.Message{Role: m.Role, ToolCalls: m.ToolCalls, ToolCallID: m.ToolCallID, ToolName: m.ToolName}
	for _, p := range m.Parts {
		part := conversation.Part{Text: p.Text}
		if p.Image != nil {
			part = conversation.Part{Image: &conversation.Image{Detail: int(p.Image.Detail)}}
		}
		out.Parts = append(out.Parts, part)
	}
	return out
}

// message is a kept message as a request has it, with the bytes of its images.
func (t *turn) message(ctx context.Context, m conversation.Message) (Message, error) {
	out := Message{Role: m.Role, ToolCalls: m.ToolCalls, ToolCallID: m.ToolCallID, ToolName: m.ToolName}
	for _, p := range m.Parts {
		part := Part{Text: p.Text}
		if p.Image != nil {
			f, err := t.loadImage(ctx, t.store, t.of, p.Image.Digest)
			if err != nil {
				return out, err
			}
			t.files = append(t.files, f)
			part.Image = &Image{Data: f.Data(), Detail: detailOf(p.Image.Detail)}
		}
		out.Parts = append(out.Parts, part)
	}
	if len(out.Parts) == 0 {
		out.Parts = []Part{{}}
	}
	return out, nil
}

// detailOf is a detail that was kept. What is none, of another version say, is the default.
func detailOf(kept int) vision.Detail {
	switch d := vision.Detail(kept); d {
	case vision.DetailLow, vision.DetailHigh:
		return d
	}
	return vision.DetailAuto
}

// hold has an image of a tenant count against the memory of media as long as it is open.
func (s *Service) hold(tenant string, data []byte) (*media.File, error) {
	if s.options.Media == nil {
		return nil, mediaOff()
	}
	w, err := s.options.Media.Create(tenant, int64(len(data)))
	if err != nil {
		return nil, mediaError("conversation", err)
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		return nil, mediaError("conversation", err)
	}
	return w.Use(), nil
}

// holdSaid takes what is said as the content policy left it. Its images are held until they are added to the
// conversation: the request lets go of them.
func (t *turn) holdSaid(req *checked) error {
	if t == nil || !t.asked.Keep {
		return nil
	}
	messages, image := req.prompt.Messages[len(req.prompt.Messages)-len(t.said):], len(req.images)
	for i, m := range slices.Backward(t.said) { // its images are the request's last
		for j := range slices.Backward(m.Parts) {
			p := &m.Parts[j]
			if p.Image == nil {
				p.Text = messages[i].Parts[j].Text
				continue
			}
			image--
			f, err := t.hold(t.of.Tenant, req.images[image].data)
			if err != nil {
				return err
			}
			t.held = append(t.held, f)
			p.Image.Data = f.Data()
		}
	}
	return nil
}

// prepare has the prompt fit the context.
func (t *turn) prepare(ctx context.Context, req *checked) error {
	if t == nil {
		return nil
	}
	return t.trim(ctx, req)
}

// trim leaves out the oldest turns of a history that the context has no room for. As many requests are measured at once
// as the process has cores.
func (t *turn) trim(ctx context.Context, req *checked) error {
	if len(t.numbers) == 0 {
		return nil
	}
	select {
	case t.counting <- struct{}{}:
		defer func() { <-t.counting }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := t.withinBudget(ctx, req.images); err != nil {
		return err
	}
	_, images, err := t.measure(ctx, req.images)
	if err != nil {
		return err
	}
	room := t.model.MaxLen - answerRoom(req, t.model.MaxLen)
	tokens := func(from int) (int, error) {
		in, err := t.without(req, images, from).tokens(ctx, t.life)
		return len(in.IDs), err
	}
	if n, err := tokens(0); err != nil || n <= room {
		return err
	}
	turns := t.turns(req.prompt.Messages)
	first, err := search(turns, room, tokens)
	if err != nil {
		return err
	}
	half, err := search(turns, room/2, tokens)
	if err != nil {
		return err
	}
	at := cut(turns, turns[first].at, max(turns[first].at, turns[max(half-1, 0)].at))
	rest := t.without(req, nil, at)
	req.prompt, req.images = rest.prompt, rest.parts
	return nil
}

// answerRoom is how many tokens of a context are kept for the answer.
func answerRoom(req *checked, context int) int {
	if req.maxTokens > 0 {
		return req.maxTokens
	}
	return min(max(defaultMaxTokens, req.sampling.MinTokens), context/4)
}

// turns lists where turns of the history begin, counted from after the system's messages.
func (t *turn) turns(messages []chat.Message) (list []border) {
	for i, number := range t.numbers {
		if messages[t.head+i].Role == "user" {
			list = append(list, border{i, number, number - 1})
		}
	}
	return append(list, border{len(t.numbers), 1 << 62, 0})
}

// search finds the first turn from which on a prompt has at most so many tokens; the last where none has.
func search(turns []border, most int, tokens func(from int) (int, error)) (int, error) {
	low, high := 0, len(turns)-1
	for low < high {
		middle := (low + high) / 2
		n, err := tokens(turns[middle].at)
		if err != nil {
			return 0, err
		}
		if n <= most {
			high = middle
		} else {
			low = middle + 1
		}
	}
	return low, nil
}

// rest is what is left of a request's prompt without some of its history.
type rest struct {
	prompt fusion.Prompt
	parts  []imagePart
	images []*vision.Image
}

// without leaves out the history's messages before one, counted from after the system's.
func (t *turn) without(req *checked, images []*vision.Image, from int) rest {
	r := rest{prompt: req.prompt, parts: req.images, images: images}
	count := func(list []chat.Message) (n int) {
		for _, m := range list {
			for _, p := range m.Parts {
				if p.Image {
					n++
				}
			}
		}
		return n
	}
	all := req.prompt.Messages
	before, out := count(all[:t.head]), count(all[t.head:t.head+from])
	r.prompt.Messages = slices.Concat(all[:t.head], all[t.head+from:])
	r.parts = slices.Concat(req.images[:before], req.images[before+out:])
	if images != nil {
		r.images = slices.Concat(images[:before], images[before+out:])
	}
	return r
}

func (r rest) tokens(ctx context.Context, l *life) (fusion.Input, error) {
	rendered, err := l.model.Prompter.Render(ctx, r.prompt)
	if err != nil {
		return fusion.Input{}, promptError("chat.messages", err)
	}
	in, err := l.model.Prompter.Input(rendered, r.images)
	return in, promptError("chat.messages", err)
}

// release lets go of the history's images, once they are decoded.
func (t *turn) release() {
	if t == nil {
		return
	}
	for _, f := range t.files {
		f.Close()
	}
	t.files = nil
}

// close lets go of all that the turn holds.
func (t *turn) close() {
	if t == nil {
		return
	}
	t.release()
	for _, f := range t.held {
		f.Close()
	}
	t.held = nil
}

// sink adds the turn to the conversation once its answer is whole, before that is told.
func (t *turn) sink(ctx context.Context, to Sink) Sink {
	if t == nil {
		return to
	}
	return &turnSink{Sink: to, turn: t, ctx: ctx}
}

type turnSink struct {
	Sink
	turn *turn
	ctx  context.Context
}

// Delta implements Sink.
func (s *turnSink) Delta(d *Delta) error {
	s.turn.text.WriteString(d.Text)
	return s.Sink.Delta(d)
}

// Finish implements Sink.
func (s *turnSink) Finish(f *Finish) error {
	n, err := s.turn.keep(s.ctx)
	if err != nil {
		return s.turn.conversationError(s.ctx, err)
	}
	f.Message = n
	return s.Sink.Finish(f)
}

// keep adds what was said and the answer, and gives its number. Where the conversation went on otherwise after the
// turn of a previous request, another one begins from there.
func (t *turn) keep(ctx context.Context) (uint64, error) {
	if !t.asked.Keep {
		return 0, nil
	}
	if t.id == "" {
		c, err := t.store.Create(ctx, t.of, conversation.New{})
		if err != nil {
			return 0, err
		}
		t.id = c.ID
	}
	if t.ended {
		if err := t.fork(ctx); err != nil {
			return 0, err
		}
	}
	n, err := t.add(ctx)
	if errors.Is(err, conversation.ErrConflict) && t.asked.Previous != "" && !t.ended {
		if err := t.fork(ctx); err != nil {
			return 0, err
		}
		n, err = t.add(ctx)
	}
	return n, err
}

func (t *turn) fork(ctx context.Context) error {
	c, err := t.store.Fork(ctx, t.of, t.id, t.last, conversation.New{})
	if err == nil {
		t.id = c.ID
	}
	return err
}

func (t *turn) add(ctx context.Context) (uint64, error) {
	answer := conversation.Message{Role: assistant, Parts: []conversation.Part{{Text: t.text.String()}}}
	p, err := t.store.Append(ctx, t.of, t.id, conversation.Appended{
		Messages: append(slices.Clone(t.said), answer), Key: t.key, After: &t.last,
	})
	return p.Last, err
}
