package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"gocloud.dev/secrets"
	_ "gocloud.dev/secrets/localsecrets" // base64key://

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/internal/reload"
	"github.com/mmserve/mmserve/server"
)

// conversationFlags say where conversations are kept between requests, and under which keys.
type conversationFlags struct {
	Conversations string   `name:"conversations" secret:"" placeholder:"STORE" env:"MMSERVE_CONVERSATIONS" help:"Keep conversations between requests, encrypted, where callers ask for it: sqlite:PATH or postgres:URL (default: nothing is kept)."`
	Keys          string   `name:"conversation-keys" secret:"" placeholder:"STORE" env:"MMSERVE_CONVERSATION_KEYS" help:"Where the wrapped keys of their subjects are kept, in the same form: apart from backups of --conversations, which a key that is gone makes unreadable (default: PATH.keys, or another schema of the same database)."`
	Master        []string `name:"conversation-master-key" secret:"" sep:"none" placeholder:"KEY" env:"MMSERVE_CONVERSATION_MASTER_KEY" help:"What wraps those keys: file:PATH or env:NAME, with 32 random bytes in base64 a line, the newest first, or a key of a key service as URL. Of several the first wraps, all unwrap; SIGHUP reads files again and wraps anew."`
	Messages      int64    `name:"conversation-messages" default:"10000" env:"MMSERVE_CONVERSATION_MESSAGES" help:"Most messages of one conversation."`
	SubjectBytes  byteSize `name:"conversation-subject-bytes" default:"1GiB" env:"MMSERVE_CONVERSATION_SUBJECT_BYTES" help:"Most bytes of all messages and images of one subject."`
	Subject       int64    `name:"conversations-per-subject" default:"10000" env:"MMSERVE_CONVERSATIONS_PER_SUBJECT" help:"Most conversations of one subject."`
	Store         bool     `name:"store-responses" env:"MMSERVE_STORE_RESPONSES" help:"Keep those of /v1/responses that do not say store, as OpenAI does (default: those that ask for it)."`
}

func (f conversationFlags) check() error {
	switch {
	case f.Conversations == "" && (f.Keys != "" || len(f.Master) > 0 || f.Store):
		return errors.New("--conversations is missing: the flags beside it say how conversations are kept there")
	case f.Conversations == "":
		return nil
	case len(f.Master) == 0:
		return errors.New("--conversation-master-key is missing: conversations are kept encrypted; " +
			"`openssl rand -base64 32 > master.key` makes one for file:master.key")
	case f.Messages < 1 || f.Messages > 1e6:
		return fmt.Errorf("--conversation-messages %d: want 1 to %d", f.Messages, int(1e6))
	case f.SubjectBytes < 1<<20 || f.SubjectBytes > 1<<44:
		return fmt.Errorf("--conversation-subject-bytes %d: want %d to %d", f.SubjectBytes, 1<<20, int64(1)<<44)
	case f.Subject < 1 || f.Subject > 1e6:
		return fmt.Errorf("--conversations-per-subject %d: want 1 to %d", f.Subject, int(1e6))
	}
	scheme, _, err := storeOf("--conversations", f.Conversations)
	if err != nil || f.Keys == "" {
		return err
	}
	other, _, err := storeOf("--conversation-keys", f.Keys)
	if err == nil && other != scheme {
		err = fmt.Errorf("--conversation-keys %s:…: want %s:… as --conversations", other, scheme)
	}
	return err
}

// storeOf splits the name of a store. Its errors do not repeat a URL, which may have a password.
func storeOf(flag, text string) (scheme, rest string, err error) {
	scheme, rest, _ = strings.Cut(text, ":")
	if scheme != "sqlite" && scheme != "postgres" || rest == "" {
		return "", "", fmt.Errorf("%s: want sqlite:PATH or postgres:URL", flag)
	}
	return scheme, rest, nil
}

// open opens the store; nil where there is none. SIGHUP has its master keys read again.
func (f conversationFlags) open(ctx context.Context, log *slog.Logger, again *reloaders) (conversation.Store, error) {
	if f.Conversations == "" {
		return nil, nil
	}
	master, err := f.master(ctx, log)
	if err != nil {
		return nil, fmt.Errorf("--conversation-master-key: %w", err)
	}
	o := conversation.Options{Master: master, Limits: conversation.Limits{
		Messages: f.Messages, SubjectBytes: int64(f.SubjectBytes), Conversations: f.Subject,
	}}
	scheme, data, _ := storeOf("", f.Conversations) // they have been checked
	_, keys, _ := storeOf("", f.Keys)
	var store conversation.Store
	if scheme == "sqlite" {
		store, err = conversation.OpenSQLite(ctx, conversation.SQLiteFiles{Data: data, Keys: keys}, o)
	} else {
		urls := conversation.PostgresURLs{Data: postgresURL(data), Keys: postgresURL(keys)}
		store, err = conversation.OpenPostgres(ctx, urls, o)
	}
	if err != nil {
		return nil, err
	}
	rewrap := func() error {
		n, err := store.Rewrap(ctx)
		if err == nil && n > 0 {
			log.Info("conversations: keys wrapped by the newest master key", "keys", n)
		}
		return err
	}
	again.add("conversations' master keys", func() error { return errors.Join(master.Reload(), rewrap()) })
	return store, rewrap()
}

// postgresURL takes both postgres:URL with a URL of its own scheme, and postgres://…
func postgresURL(rest string) string {
	if strings.HasPrefix(rest, "//") {
		return "postgres:" + rest
	}
	return rest
}

// masterKeys are the master keys of the flags, in their order.
type masterKeys struct {
	list []conversation.Master
	read []*reload.Files[*conversation.Ring]
}

func (f conversationFlags) master(ctx context.Context, log *slog.Logger) (*masterKeys, error) {
	m := &masterKeys{}
	for _, text := range f.Master {
		scheme, rest, _ := strings.Cut(text, ":")
		switch scheme {
		case "file":
			files, err := reload.Open("conversations' master keys", log, func(contents [][]byte) (*conversation.Ring, error) {
				return conversation.ParseRing(contents[0])
			}, rest)
			if err != nil {
				return nil, err
			}
			m.read, m.list = append(m.read, files), append(m.list, readRing{files})
		case "env":
			ring, err := conversation.ParseRing([]byte(os.Getenv(rest)))
			if err != nil {
				return nil, fmt.Errorf("the variable %s: %w", rest, err)
			}
			m.list = append(m.list, ring)
		default:
			k, err := openKeeper(ctx, text)
			if err != nil {
				return nil, err
			}
			m.list = append(m.list, k)
		}
	}
	return m, nil
}

// openKeeper opens a key of a key service. Its name in what it wraps is a hash of its URL, which may be a secret.
func openKeeper(ctx context.Context, url string) (conversation.Master, error) {
	keeper, err := secrets.OpenKeeper(ctx, url)
	if err != nil {
		return nil, errors.New("no file:PATH, env:NAME or URL of a key service that this build knows: base64key://")
	}
	id := conversation.KeyID(fmt.Sprintf("keeper-%x", sha256.Sum256([]byte(url)))[:len("keeper-")+16])
	return conversation.NewKept(conversation.NamedKeeper{ID: id, Keeper: keeper})
}

// Reload reads files again.
func (m *masterKeys) Reload() error {
	var errs []error
	for _, f := range m.read {
		errs = append(errs, f.Reload())
	}
	return errors.Join(errs...)
}

// Current implements conversation.Master.
func (m *masterKeys) Current() conversation.KeyID { return m.list[0].Current() }

// Wrap implements conversation.Master.
func (m *masterKeys) Wrap(ctx context.Context, key, bound []byte) (conversation.KeyID, []byte, error) {
	return m.list[0].Wrap(ctx, key, bound)
}

// Unwrap implements conversation.Master.
func (m *masterKeys) Unwrap(ctx context.Context, id conversation.KeyID, wrapped, bound []byte) ([]byte, error) {
	for _, master := range m.list {
		key, err := master.Unwrap(ctx, id, wrapped, bound)
		if !errors.Is(err, conversation.ErrMaster) {
			return key, err
		}
	}
	return nil, conversation.ErrMaster
}

// readRing is the ring of a file, as it was last read.
type readRing struct {
	*reload.Files[*conversation.Ring]
}

// Current implements conversation.Master.
func (r readRing) Current() conversation.KeyID { return r.Value().Current() }

// Wrap implements conversation.Master.
func (r readRing) Wrap(ctx context.Context, key, bound []byte) (conversation.KeyID, []byte, error) {
	return r.Value().Wrap(ctx, key, bound)
}

// Unwrap implements conversation.Master.
func (r readRing) Unwrap(ctx context.Context, id conversation.KeyID, wrapped, bound []byte) ([]byte, error) {
	return r.Value().Unwrap(ctx, id, wrapped, bound)
}

// apply sets what the server does with conversations.
func (f conversationFlags) apply(o *server.Options, s conversation.Store) {
	o.Conversations, o.StoreResponses = s, f.Store
}

var _ conversation.Master = (*masterKeys)(nil)
