package conversation

import (
	"archive/zip"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

// An archive is a zip file:
//
//	mmserve-conversations.json      what it is: format and version
//	conversations/<id>.jsonl        a line on the conversation, then one a message
//	images/<SHA-256>                image files that messages name, as they were given
const (
	archiveManifest = "mmserve-conversations.json"
	archiveFolder   = "conversations/"
	archiveImages   = "images/"
	archiveFormat   = "mmserve-conversations"
	archiveVersion  = 1
)

type manifest struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
}

type archivedConversation struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
	Info
	Class     Class `json:"retention_class,omitempty"`
	KeepHours int64 `json:"retention_hours,omitempty"`
}

type archivedMessage struct {
	Seq       uint64     `json:"seq"`
	Time      time.Time  `json:"time"`
	Corrected *time.Time `json:"corrected,omitempty"`
	body
}

// Export writes conversations of a subject to an archive: those of the ids given, or with none all. The archive may
// have other files beside them; it is the caller's to close.
func Export(ctx context.Context, s Store, of Scope, ids []string, to *zip.Writer) error {
	w, err := to.Create(archiveManifest)
	if err == nil {
		err = json.NewEncoder(w).Encode(manifest{archiveFormat, archiveVersion})
	}
	if err != nil {
		return err
	}
	e := &exporting{Store: s, of: of, to: to, images: map[[32]byte]bool{}}
	if len(ids) > 0 {
		for _, id := range ids {
			if err := e.conversation(ctx, id); err != nil {
				return err
			}
		}
		return nil
	}
	for from := ""; ; {
		list, next, err := s.List(ctx, of, from, 0)
		if err != nil {
			return err
		}
		for _, c := range list {
			err := e.conversation(ctx, c.ID)
			if err != nil && !errors.Is(err, ErrNotFound) { // it may have been deleted in between
				return err
			}
		}
		if from = next; next == "" {
			return nil
		}
	}
}

type exporting struct {
	Store
	of     Scope
	to     *zip.Writer
	images map[[32]byte]bool // that are there already
}

func (e *exporting) conversation(ctx context.Context, id string) error {
	c, list, err := e.Get(ctx, e.of, id, 0, 0)
	if err != nil {
		return err
	}
	name := archiveFolder + c.ID + ".jsonl"
	w, err := e.to.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate, Modified: c.Updated})
	if err != nil {
		return err
	}
	lines := json.NewEncoder(w)
	err = lines.Encode(archivedConversation{
		ID: c.ID, Created: c.Created, Updated: c.Updated, Info: c.Info,
		Class: c.Retention.Class, KeepHours: int64(c.Retention.For / time.Hour),
	})
	if err != nil {
		return err
	}
	var named [][32]byte
	for len(list) > 0 {
		for i := range list {
			if err := lines.Encode(archived(&list[i])); err != nil {
				return err
			}
			for _, p := range list[i].Parts {
				if p.Image != nil {
					named = append(named, p.Image.Digest)
				}
			}
		}
		if _, list, err = e.Get(ctx, e.of, id, list[len(list)-1].Seq, 0); err != nil {
			return err
		}
	}
	return e.addImages(ctx, named)
}

func archived(m *Message) archivedMessage {
	out := archivedMessage{Seq: m.Seq, Time: m.Time, body: m.body()}
	if !m.Corrected.IsZero() {
		out.Corrected = &m.Corrected
	}
	return out
}

func (e *exporting) addImages(ctx context.Context, named [][32]byte) error {
	for _, digest := range named {
		if e.images[digest] {
			continue
		}
		e.images[digest] = true
		data, err := e.Image(ctx, e.of, digest)
		if err != nil {
			return err
		}
		w, err := e.to.CreateHeader(&zip.FileHeader{Name: archiveImages + hex.EncodeToString(digest[:]), Method: zip.Store})
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Bounds of what is read of an archive, which may be hostile.
const (
	maxManifest     = 64 << 10
	maxArchiveLine  = 16 << 20
	maxArchiveImage = 64 << 20
	maxArchiveShown = 256 << 20 // of all images of one message
	maxArchiveRead  = 2 << 30   // of all that one import inflates
	importPage      = 100       // messages of one append
	importBytes     = 8 << 20   // after which one is made, images aside
)

// Import adds the conversations of an archive to a subject's, under new ids, with the times that their messages have.
// It gives the new ids. Conversations that an earlier import of the same archive added are left out, so that one that
// failed may be tried again. What the store refuses ends it, as ctx does, and an archive that inflates to over 2 GiB.
func Import(ctx context.Context, s Store, of Scope, from *zip.Reader) (ids []string, err error) {
	return importWithin(ctx, s, of, from, maxArchiveRead)
}

// importWithin is Import with a bound of what is inflated, in bytes.
func importWithin(ctx context.Context, s Store, of Scope, from *zip.Reader, most int64) (ids []string, err error) {
	im := &importing{Store: s, of: of, files: map[string]*zip.File{}, images: map[[32]byte]bool{}, most: most, left: most}
	for _, f := range from.File {
		im.files[f.Name] = f
	}
	text, err := im.read(ctx, archiveManifest, maxManifest)
	if err != nil {
		return nil, err
	}
	var m manifest
	if json.Unmarshal(text, &m) != nil || m.Format != archiveFormat || m.Version != archiveVersion {
		return nil, fmt.Errorf("%w: no archive of conversations of version %d", ErrInvalid, archiveVersion)
	}
	for _, f := range from.File {
		if path.Dir(f.Name)+"/" != archiveFolder || path.Ext(f.Name) != ".jsonl" {
			continue
		}
		id, err := im.conversation(ctx, f.Name)
		if err != nil {
			return ids, err
		}
		if id != "" {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

type importing struct {
	Store
	of         Scope
	files      map[string]*zip.File
	images     map[[32]byte]bool // that were given to the store
	most, left int64             // bytes that may be inflated, and are left of these
}

// open opens a file of the archive, whose bytes count.
func (im *importing) open(ctx context.Context, name string) (*inflating, error) {
	f := im.files[name]
	if f == nil {
		return nil, fmt.Errorf("%w: the archive lacks a file: %s, or an image that it names", ErrInvalid, archiveManifest)
	}
	r, err := f.Open()
	if err != nil {
		return nil, fmt.Errorf("%w: a file of the archive does not open", ErrInvalid)
	}
	return &inflating{ReadCloser: r, ctx: ctx, im: im}, nil
}

// inflating is a file of an archive that is being read. It ends with the context, and with what may be inflated.
type inflating struct {
	io.ReadCloser
	ctx context.Context
	im  *importing
	err error // why it ended early
}

// Read implements io.Reader.
func (r *inflating) Read(p []byte) (int, error) {
	if r.err == nil {
		r.err = r.ctx.Err()
	}
	if r.err == nil && r.im.left < 0 {
		r.err = fmt.Errorf("%w: the archive has over %d bytes when it is inflated", ErrInvalid, r.im.most)
	}
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.ReadCloser.Read(p)
	r.im.left -= int64(n)
	return n, err
}

// read gives a file of at most some bytes.
func (im *importing) read(ctx context.Context, name string, most int64) ([]byte, error) {
	r, err := im.open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }() // reading has told what is wrong
	data, err := io.ReadAll(io.LimitReader(r, most+1))
	switch {
	case r.err != nil:
		return nil, r.err
	case err != nil || int64(len(data)) > most:
		return nil, fmt.Errorf("%w: a file of the archive is broken, or has over %d bytes", ErrInvalid, most)
	}
	return data, nil
}

// lines calls do for each line of a file.
func (im *importing) lines(ctx context.Context, name string, do func([]byte) error) error {
	r, err := im.open(ctx, name)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // reading has told what is wrong
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxArchiveLine)
	for lines.Scan() {
		if r.err != nil { // the line is what came before it
			return r.err
		}
		if err := ctx.Err(); err != nil { // a block has many lines
			return err
		}
		if err := do(lines.Bytes()); err != nil {
			return err
		}
	}
	switch {
	case r.err != nil:
		return r.err
	case lines.Err() != nil:
		return fmt.Errorf("%w: a file of the archive is broken, or has lines of over %d bytes", ErrInvalid, maxArchiveLine)
	}
	return nil
}

// conversation adds one, and gives its new id; none if it was there.
func (im *importing) conversation(ctx context.Context, name string) (id string, err error) {
	key := "import " + strings.TrimSuffix(path.Base(name), ".jsonl")
	if len(key) > MaxNameBytes {
		return "", fmt.Errorf("%w: a name in the archive has over %d bytes", ErrInvalid, MaxNameBytes)
	}
	if _, err := im.Locate(ctx, im.of, key); err == nil {
		return "", nil
	} else if !errors.Is(err, ErrNotFound) {
		return "", err
	}
	var pending []Message
	size := 0
	flush := func(key string) error {
		_, err := im.Append(ctx, im.of, id, Appended{Messages: pending, AsOf: true, Key: key})
		pending, size = nil, 0
		return err
	}
	err = im.lines(ctx, name, func(line []byte) error {
		if id == "" {
			id, err = im.create(ctx, line)
			return err
		}
		m, err := im.message(ctx, line)
		if err != nil {
			return err
		}
		// The key comes with the last: without it an import is not complete.
		full := len(pending) == importPage || size > importBytes || len(pending) > 0 && pending[len(pending)-1].shows()
		if full {
			if err := flush(""); err != nil {
				return err
			}
		}
		pending, size = append(pending, m), size+len(line)
		return nil
	})
	if err == nil && len(pending) > 0 {
		err = flush(key)
	}
	if err != nil && id != "" {
		err = errors.Join(err, im.Delete(context.WithoutCancel(ctx), im.of, id))
	}
	return id, err
}

// shows says whether a message has images.
func (m *Message) shows() bool {
	return slices.ContainsFunc(m.Parts, func(p Part) bool { return p.Image != nil })
}

func (im *importing) create(ctx context.Context, line []byte) (string, error) {
	var a archivedConversation
	if json.Unmarshal(line, &a) != nil {
		return "", fmt.Errorf("%w: the archive has a conversation that is none", ErrInvalid)
	}
	n := New{Info: a.Info, Created: a.Created}
	if a.KeepHours < 0 || a.KeepHours > int64(MaxKeep/time.Hour) {
		return "", fmt.Errorf("%w: the archive has a conversation that is kept for %d hours", ErrInvalid, a.KeepHours)
	}
	if n.Retention = (Retention{a.Class, time.Duration(a.KeepHours) * time.Hour}); n.Retention.For == 0 {
		n.Retention = Retention{}
	}
	c, err := im.Create(ctx, im.of, n)
	if err != nil {
		return "", err
	}
	return c.ID, nil
}

// message reads one, with the bytes of images that the store was not given yet.
func (im *importing) message(ctx context.Context, line []byte) (m Message, err error) {
	var a archivedMessage
	if json.Unmarshal(line, &a) != nil {
		return m, fmt.Errorf("%w: the archive has a message that is none", ErrInvalid)
	}
	if err := a.message(&m); err != nil {
		return m, fmt.Errorf("%w: the archive has a message that is none", ErrInvalid)
	}
	m.Time = a.Time
	if a.Corrected != nil {
		m.Corrected = *a.Corrected
	}
	if err := m.check(); err != nil { // before images are read
		return m, err
	}
	return m, im.fill(ctx, &m)
}

// fill gives a message the bytes of its images, of each once. Those of a message before are in the store by then.
func (im *importing) fill(ctx context.Context, m *Message) error {
	shown, here := 0, map[[32]byte][]byte{}
	for _, p := range m.Parts {
		if p.Image == nil {
			continue
		}
		digest := p.Image.Digest
		if im.images[digest] && here[digest] == nil {
			continue
		}
		if here[digest] == nil {
			data, err := im.image(ctx, digest)
			if err != nil {
				return err
			}
			if shown += len(data); shown > maxArchiveShown {
				return fmt.Errorf("%w: a message in the archive shows images of over %d bytes", ErrInvalid, maxArchiveShown)
			}
			here[digest], im.images[digest] = data, true
		}
		p.Image.Data = here[digest]
	}
	return nil
}

func (im *importing) image(ctx context.Context, digest [32]byte) ([]byte, error) {
	data, err := im.read(ctx, archiveImages+hex.EncodeToString(digest[:]), maxArchiveImage)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(data) != digest {
		return nil, fmt.Errorf("%w: an image in the archive is not the one that it names", ErrInvalid)
	}
	return data, nil
}
