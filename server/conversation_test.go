package server_test

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/conversation/conversationtest"
	"github.com/mmserve/mmserve/internal/media"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
)

// openStore opens a store of conversations in a file until the test ends.
func openStore(t testing.TB, path string, limits conversation.Limits) conversation.Store {
	t.Helper()
	s, err := conversation.OpenSQLite(t.Context(), conversation.SQLiteFiles{Data: path},
		conversation.Options{Master: conversationtest.Ring(t, 1), Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// talk is a server that keeps conversations, with what its runner was given.
type talk struct {
	*fixture
	pb.ConversationServiceClient
	chain *chain
}

func startTalk(t testing.TB, path string, o server.Options) *talk {
	t.Helper()
	o.Conversations = openStore(t, path, conversation.Limits{})
	o.Media = media.New(media.Options{Bytes: 8 << 20, TTL: time.Hour})
	c := newChain(2, 430, 431, 4)
	f := start(t, tinyVLM(t), c, o)
	return &talk{f, pb.NewConversationServiceClient(f.conn), c}
}

func (f *talk) create(t testing.TB, subject string) string {
	t.Helper()
	in := &pb.CreateConversationRequest{Tenant: "acme", Subject: subject, Title: "a title"}
	c, err := f.CreateConversation(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return c.GetConversation().GetId()
}

// ask goes on with alice's conversation.
func (f *talk) ask(t testing.TB, id string, messages ...*pb.Message) *pb.GenerateResponse {
	t.Helper()
	r, err := f.Generate(t.Context(), turnOf(id, messages...))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func turnOf(id string, messages ...*pb.Message) *pb.GenerateRequest {
	in := client.Chat(messages...)
	in.Tenant, in.Subject, in.Conversation = "acme", "alice", id
	return in
}

func (f *talk) get(t testing.TB, id string) *pb.GetConversationResponse {
	t.Helper()
	r, err := f.GetConversation(t.Context(),
		&pb.GetConversationRequest{Tenant: "acme", Subject: "alice", Conversation: id})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// lastPrompt is the newest prompt that the runner was given.
func (c *chain) lastPrompt() []int32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.prompts[len(c.prompts)-1]
}

// TestConversation holds that a conversation with two images that the server keeps has the prompts of one that is sent
// whole each time, and that a restart in the middle changes none.
func TestConversation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	cat, dog := pngFile(64), pngFile(32)
	f := startTalk(t, path, server.Options{})
	id := f.create(t, "alice")
	turns := []*pb.Message{
		client.User(client.ImageBytes(cat), client.Text("What is this?")),
		client.User(client.Text("And which colour?")),
		client.User(client.ImageBytes(dog), client.Text("Is this the same?")),
		client.User(client.Text("Thanks.")),
	}
	whole := []*pb.Message{{Role: pb.Role_ROLE_SYSTEM, Parts: []*pb.Part{client.Text("Be brief.")}}}
	for i, turn := range turns {
		if i == 2 { // a restart
			f.stop()
			<-f.served
			f = startTalk(t, path, server.Options{})
		}
		said := []*pb.Message{turn}
		if i == 0 {
			said = append(slices.Clone(whole), turn)
		}
		got := f.ask(t, id, said...)
		kept := f.chain.lastPrompt()
		if n := got.GetConversationMessage(); n != uint64(2*i+3) {
			t.Errorf("answer %d is message %d", i, n)
		}
		whole = append(whole, turn)
		in := client.Chat(whole...)
		in.Tenant = "stateless"
		want, err := f.Generate(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(kept, f.chain.lastPrompt()) || got.GetText() != want.GetText() {
			t.Errorf("turn %d: %q to %v, want %q to %v", i, got.GetText(), kept, want.GetText(), f.chain.lastPrompt())
		}
		whole = append(whole, &pb.Message{Role: pb.Role_ROLE_ASSISTANT, Parts: []*pb.Part{client.Text(got.GetText())}})
	}
	c := f.get(t, id)
	if c.GetConversation().GetMessages() != 9 || len(c.GetMessages()) != 9 || c.GetConversation().GetTitle() != "a title" {
		t.Errorf("the conversation is %v", c.GetConversation())
	}
	for i, m := range c.GetMessages() {
		for _, p := range whole[i].GetParts() {
			if image := p.GetImage(); image != nil {
				image.Digest, image.Data, image.Detail = digestOf(image.GetData()), nil, pb.Detail_DETAIL_AUTO
			}
		}
		if m.GetNumber() != uint64(i+1) || !proto.Equal(m.GetMessage(), whole[i]) {
			t.Errorf("message %d is %v, want %v", i+1, m, whole[i])
		}
	}
}

// TestConversationStream holds that the answer is kept before its end is told, and not at all if its stream breaks.
func TestConversationStream(t *testing.T) {
	f := startTalk(t, filepath.Join(t.TempDir(), "x.db"), server.Options{})
	id := f.create(t, "alice")
	in := turnOf(id, client.User(client.Text("Hello")))
	in.RequestId = "once"
	_, _, finish, err := collect(t.Context(), f.Client, in)
	if err != nil || finish.GetConversationMessage() != 2 {
		t.Fatalf("%v, %v", finish, err)
	}
	_, _, _, err = collect(t.Context(), f.Client, in)
	if status.Code(err) != codes.AlreadyExists {
		t.Errorf("the same request again: %v", err)
	}
	if n := f.get(t, id).GetConversation().GetMessages(); n != 2 {
		t.Errorf("%d messages, want 2", n)
	}
	image := turnOf(id, client.User(client.ImageBytes([]byte("no image"))))
	if _, err := f.Generate(t.Context(), image); status.Code(err) != codes.InvalidArgument ||
		!strings.Contains(err.Error(), "chat.messages[0].parts[0].image.data") {
		t.Errorf("a wrong image: %v", err)
	}
	if n := f.get(t, id).GetConversation().GetMessages(); n != 2 {
		t.Errorf("%d messages after a refusal, want 2", n)
	}
}

func TestConversationRefusals(t *testing.T) {
	f := startTalk(t, filepath.Join(t.TempDir(), "x.db"), server.Options{})
	id := f.create(t, "alice")
	hello := client.User(client.Text("Hello"))
	for name, c := range map[string]struct {
		change func(*pb.GenerateRequest)
		code   codes.Code
		names  string
	}{
		"another's":  {func(r *pb.GenerateRequest) { r.Subject = "bob" }, codes.NotFound, "conversation"},
		"no subject": {func(r *pb.GenerateRequest) { r.Subject = "" }, codes.NotFound, "conversation"},
		"tenant":     {func(r *pb.GenerateRequest) { r.Tenant = "other" }, codes.NotFound, "conversation"},
		"no id":      {func(r *pb.GenerateRequest) { r.Conversation = "x" }, codes.NotFound, "conversation"},
		"long subject": {func(r *pb.GenerateRequest) { r.Subject = strings.Repeat("x", 129) }, codes.InvalidArgument,
			"subject"},
		"two answers": {func(r *pb.GenerateRequest) { r.N = 2 }, codes.InvalidArgument, "n:"},
		"a prompt": {func(r *pb.GenerateRequest) {
			r.Input = &pb.GenerateRequest_Prompt{Prompt: &pb.Prompt{Parts: hello.GetParts()}}
		}, codes.InvalidArgument, "conversation"},
		"continued": {func(r *pb.GenerateRequest) { r.GetChat().ContinueFinalMessage = true }, codes.InvalidArgument,
			"continue_final_message"},
		"no messages": {func(r *pb.GenerateRequest) { r.GetChat().Messages = nil }, codes.InvalidArgument,
			"chat.messages"},
		"the assistant's": {func(r *pb.GenerateRequest) { r.GetChat().Messages[0].Role = 3 }, codes.InvalidArgument, "role"},
	} {
		in := turnOf(id, proto.Clone(hello).(*pb.Message))
		c.change(in)
		if _, err := f.Generate(t.Context(), in); status.Code(err) != c.code || !strings.Contains(err.Error(), c.names) {
			t.Errorf("%s: %v, want %v about %s", name, err, c.code, c.names)
		}
	}
	if n := f.get(t, id).GetConversation().GetMessages(); n != 0 {
		t.Errorf("%d messages, want none", n)
	}
	without := start(t, tinyVLM(t), newChain(2, 430, 4), server.Options{})
	if _, err := without.Generate(t.Context(), turnOf(id, hello)); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("without a store: %v", err)
	}
	_, err := pb.NewConversationServiceClient(without.conn).ListConversations(t.Context(), &pb.ListConversationsRequest{})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("without a store: %v", err)
	}
	if strings.Contains(f.log.String(), "Hello") || strings.Contains(f.log.String(), "alice") {
		t.Errorf("the log has content or names: %s", f.log)
	}
}

// TestConversationTrim holds that a conversation which grows beyond the context goes on: the system's message and the
// newest turns stay, and most prompts begin as the one before did.
func TestConversationTrim(t *testing.T) {
	f := startTalk(t, filepath.Join(t.TempDir(), "x.db"), server.Options{})
	id := f.create(t, "alice")
	_, err := f.AppendMessages(t.Context(), &pb.AppendMessagesRequest{
		Tenant: "acme", Subject: "alice", Conversation: id,
		Messages: []*pb.Message{{Role: pb.Role_ROLE_SYSTEM, Parts: []*pb.Part{client.Text("Be brief.")}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	const turns = 40
	kept, images := 0, pngFile(16)
	var before []int32
	for i := range turns {
		turn := client.User(client.Text(fmt.Sprintf("Question %d of many", i)))
		if i%2 == 0 {
			turn.Parts = append(turn.Parts, client.ImageBytes(images))
		}
		in := turnOf(id, turn)
		in.MaxTokens = proto.Uint32(64)
		r, err := f.Generate(t.Context(), in)
		if err != nil {
			t.Fatalf("turn %d: %v", i, err)
		}
		prompt := f.chain.lastPrompt()
		if n := int(r.GetUsage().GetPromptTokens()); n > contextLen-64 || i > turns/2 && n < contextLen/4 {
			t.Errorf("turn %d has a prompt of %d tokens in a context of %d", i, n, contextLen)
		}
		if len(before) > 0 && slices.Equal(prompt[:len(before)], before) {
			kept++
		}
		before = prompt
	}
	if kept < turns*2/3 {
		t.Errorf("%d of %d prompts begin as the one before did", kept, turns)
	}
	if n := f.get(t, id).GetConversation().GetMessages(); n != 2*turns+1 {
		t.Errorf("%d messages are kept, want all %d", n, 2*turns+1)
	}
}

func TestConversationService(t *testing.T) {
	f := startTalk(t, filepath.Join(t.TempDir(), "x.db"), server.Options{})
	ctx, id := t.Context(), f.create(t, "alice")
	image := bytes.Repeat(pngFile(64), 20_000)[:3<<20] // its bytes are not looked at
	appended := &pb.AppendMessagesRequest{
		Tenant: "acme", Subject: "alice", Conversation: id, IdempotencyKey: "k", After: proto.Uint64(0),
		Messages: []*pb.Message{client.User(client.Text("look"), client.ImageBytes(image)),
			{Role: pb.Role_ROLE_ASSISTANT, Parts: []*pb.Part{client.Text("nice")}}},
	}
	for again := range 2 {
		p, err := f.AppendMessages(ctx, appended)
		if err != nil || p.GetFirst() != 1 || p.GetLast() != 2 || p.GetRepeatedAppend() != (again == 1) {
			t.Fatalf("%v, %v", p, err)
		}
	}
	appended.IdempotencyKey = ""
	if _, err := f.AppendMessages(ctx, appended); status.Code(err) != codes.Aborted {
		t.Errorf("an append after message 0 where there are two: %v", err)
	}
	got, err := f.GetConversationImage(ctx,
		&pb.GetConversationImageRequest{Tenant: "acme", Subject: "alice", Digest: digestOf(image)})
	if err != nil {
		t.Fatal(err)
	}
	var data []byte
	for {
		chunk, err := got.Recv()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		data = append(data, chunk.GetChunk()...)
	}
	if !bytes.Equal(data, image) {
		t.Errorf("an image of %d bytes came back as %d", len(image), len(data))
	}
	fork, err := f.ForkConversation(ctx,
		&pb.ForkConversationRequest{Tenant: "acme", Subject: "alice", Conversation: id, UpTo: 1, Title: "other"})
	if err != nil || fork.GetConversation().GetForkedFrom() != id || fork.GetConversation().GetMessages() != 1 {
		t.Errorf("%v, %v", fork, err)
	}
	list, err := f.ListConversations(ctx, &pb.ListConversationsRequest{Tenant: "acme", Subject: "alice", PageSize: 1})
	if err != nil || len(list.GetConversations()) != 1 || list.GetNextPageToken() == "" {
		t.Errorf("%v, %v", list, err)
	}
	if names := exported(t, f, id); !slices.Contains(names, "conversations/"+id+".jsonl") || len(names) != 3 {
		t.Errorf("an archive has %v", names)
	}
	gone := &pb.DeleteConversationRequest{Tenant: "acme", Subject: "alice", Conversation: id}
	if _, err := f.DeleteConversation(ctx, gone); err != nil {
		t.Error(err)
	}
	if _, err := f.DeleteConversation(ctx, gone); status.Code(err) != codes.NotFound {
		t.Errorf("deleted twice: %v", err)
	}
}

// exported are the names of the files in an archive of a conversation.
func exported(t *testing.T, f *talk, id string) (names []string) {
	t.Helper()
	stream, err := f.ExportConversations(t.Context(),
		&pb.ExportConversationsRequest{Tenant: "acme", Subject: "alice", Conversations: []string{id}})
	if err != nil {
		t.Fatal(err)
	}
	var archive []byte
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		archive = append(archive, chunk.GetChunk()...)
	}
	r, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range r.File {
		names = append(names, file.Name)
	}
	return names
}

func TestConversationServiceRefusals(t *testing.T) {
	f := startTalk(t, filepath.Join(t.TempDir(), "x.db"), server.Options{})
	ctx, id := t.Context(), f.create(t, "alice")
	create := func(in *pb.CreateConversationRequest) error { _, err := f.CreateConversation(ctx, in); return err }
	appendTo := func(list ...*pb.Message) error {
		_, err := f.AppendMessages(ctx,
			&pb.AppendMessagesRequest{Tenant: "acme", Subject: "alice", Conversation: id, Messages: list})
		return err
	}
	metadata := map[string]string{}
	for i := range 17 {
		metadata[fmt.Sprint(i)] = ""
	}
	named := &pb.Image{Digest: digestOf([]byte("never sent"))}
	for name, c := range map[string]struct {
		err   error
		names string
	}{
		"long title":     {create(&pb.CreateConversationRequest{Title: strings.Repeat("x", 17<<10)}), "title"},
		"much metadata":  {create(&pb.CreateConversationRequest{Metadata: metadata}), "metadata"},
		"long tenant":    {create(&pb.CreateConversationRequest{Tenant: strings.Repeat("x", 129)}), "tenant"},
		"no messages":    {appendTo(), "messages"},
		"no role":        {appendTo(&pb.Message{Parts: []*pb.Part{client.Text("x")}}), "messages[0].role"},
		"no parts":       {appendTo(client.User()), "messages[0].parts"},
		"an empty part":  {appendTo(client.User(&pb.Part{})), "messages[0].parts[0]"},
		"an empty image": {appendTo(client.User(client.ImageBytes(nil))), "messages[0].parts[0].image"},
		"an unknown image": {appendTo(client.User(&pb.Part{Content: &pb.Part_Image{Image: named}})),
			"not kept for the subject"},
	} {
		if status.Code(c.err) != codes.InvalidArgument || !strings.Contains(c.err.Error(), c.names) {
			t.Errorf("%s: %v, want INVALID_ARGUMENT about %s", name, c.err, c.names)
		}
	}
}
