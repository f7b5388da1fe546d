package serving

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/internal/imaging"
	"github.com/mmserve/mmserve/internal/media"
	"github.com/mmserve/mmserve/vision"
)

// Media is an image file that was uploaded.
type Media struct {
	// Digest is what requests name it by, "sha256:" and 64 hexadecimal digits.
	Digest string
	Bytes  int64
	// Type is its media type, as its first bytes tell it: image/jpeg, say.
	Type string
	// Expires is when it will be let go of, unless it is used or uploaded again. Others may need the room earlier.
	Expires time.Time
}

// UploadHeader says what is known of a file before its bytes. What it says is held against them.
type UploadHeader struct {
	// ID names the upload in the log; one is made where it is empty. Tenant is whose requests may use the file.
	ID, Tenant string
	// Size is the number of bytes, if known.
	Size *uint64
	// Digest and Type are as in Media, empty if not known.
	Digest, Type string
}

// Upload is an image file on its way. One goroutine has it, and ends it with Finish or Abort.
type Upload struct {
	// Kept is the file if the tenant has it already: no byte need be sent.
	Kept *Media

	service *Service
	writer  *media.Writer
	header  UploadHeader
	most    int64
	digest  *media.Digest // what the caller says that it is; nil if nothing
	known   bool          // its first bytes have been looked at
	began   time.Time
}

// UploadMedia begins an upload. An error is an *Error, which names fields as the contract does.
func (s *Service) UploadMedia(ctx context.Context, in UploadHeader) (u *Upload, err error) {
	var v Violations
	in.Tenant = TenantOf(ctx, in.Tenant, "header.tenant", &v)
	u = &Upload{service: s, header: in, began: time.Now()}
	if !validID(in.ID) || in.ID == "" {
		u.header.ID = rand.Text()
	}
	if u.header.Tenant = in.Tenant; !validID(in.Tenant) {
		u.header.Tenant = ""
	}
	if err := s.notQuarantined(ctx, u.header.Tenant, CallerOf(ctx).Peer); err != nil {
		return nil, u.log(ctx, err)
	}
	use, _ := ctx.Value(usageKey{}).(*usage)
	if !use.adopt() { // AdmitPlaceless has not counted it
		use, err = s.options.Quotas.enter(u.header.Tenant, CallerOf(ctx).Peer)
	}
	if err == nil {
		use.end(0, true) // it counts against the rate; the store bounds the rest
		if err = s.auditBegin(u.event(ctx)); err == nil {
			err = u.begin(in, v)
		}
	}
	if err != nil {
		s.options.Telemetry.countQuota(ctx, err)
		return nil, u.log(ctx, err)
	}
	return u, nil
}

// RefuseUpload records an upload that an edge refuses before its header has come, as AdmitPlaceless says.
func (s *Service) RefuseUpload(ctx context.Context, err error) error {
	u := &Upload{service: s, header: UploadHeader{ID: rand.Text(), Tenant: CallerOf(ctx).Tenant}, began: time.Now()}
	s.options.Telemetry.countQuota(ctx, err)
	return u.log(ctx, err)
}

// begin settles what is wrong with a header beside v, and where its bytes go.
func (u *Upload) begin(in UploadHeader, v Violations) error {
	store := u.service.options.Media
	if store == nil {
		return mediaOff()
	}
	if !validID(in.ID) {
		v.Add("header.request_id", idText, len(in.ID), MaxIDBytes)
	}
	if !validID(in.Tenant) {
		v.Add("header.tenant", idText, len(in.Tenant), MaxIDBytes)
	}
	u.most = u.service.largestMedia()
	if in.Size != nil {
		if *in.Size == 0 || *in.Size > uint64(u.most) {
			v.Add("header.size", "%d; want 1 to %d: the bytes of the file", *in.Size, u.most)
		}
		u.most = int64(min(*in.Size, uint64(u.most)))
	}
	if in.Digest != "" {
		d, err := media.ParseDigest(in.Digest)
		if err != nil {
			v.Add("header.digest", "%v", err)
		}
		u.digest = &d
	}
	if err := v.Err(); err != nil {
		return err
	}
	if u.digest != nil {
		if f, ok := store.Open(in.Tenant, *u.digest); ok {
			u.Kept = kept(f)
			return nil
		}
	}
	w, err := store.Create(in.Tenant, u.most)
	u.writer = w
	return mediaError("header.size", err)
}

// kept tells of a file, whose use it ends.
func kept(f *media.File) *Media {
	defer f.Close()
	info := f.Info()
	return &Media{
		Digest: info.Digest.String(), Bytes: info.Size, Type: imaging.MediaType(f.Data()), Expires: info.Expires,
	}
}

// firstLook is how many bytes tell a format that is not read, so that no more of it need be sent.
const firstLook = 64

// MaxChunk is the most bytes of one Write.
const MaxChunk = 1 << 20

// Write adds bytes of the file. An error is an *Error, which names the field chunk.
func (u *Upload) Write(chunk []byte) error {
	if len(chunk) > MaxChunk {
		return InvalidField("chunk", "%d bytes; want at most %d in a message", len(chunk), MaxChunk)
	}
	have := u.writer.Size() + int64(len(chunk))
	if have > u.most {
		return InvalidField("chunk", "%d bytes up to here; want at most %d", have, u.most)
	}
	if _, err := u.writer.Write(chunk); err != nil {
		return mediaError("chunk", err)
	}
	if !u.known && have >= firstLook {
		u.known = true
		if err := imaging.Refused(u.writer.Data()); err != nil {
			return InvalidField("chunk", "%v", err)
		}
	}
	return nil
}

// Finish keeps the file, once it is whole, is what its caller said, and has the header of an image that
// requests may show. failed is why it did not come whole, nil if it did. An error is an *Error, which names
// fields as the contract does.
func (u *Upload) Finish(ctx context.Context, failed error) (m *Media, err error) {
	m = u.Kept
	if m == nil {
		defer u.writer.Abort()
		if err = failed; err == nil {
			m, err = u.finish(ctx)
		}
	}
	return m, u.log(ctx, err)
}

func (u *Upload) finish(ctx context.Context) (*Media, error) {
	data := u.writer.Data()
	switch n := u.writer.Size(); {
	case n == 0:
		return nil, InvalidField("chunk", "no bytes came; want those of an image file")
	case u.header.Size != nil && uint64(n) != *u.header.Size:
		return nil, InvalidField("header.size", "%d; %d bytes came", *u.header.Size, n)
	case u.digest != nil && *u.digest != u.writer.Digest():
		return nil, InvalidField("header.digest", "the bytes that came have another SHA-256")
	}
	limits, release := u.service.imageLimits()
	defer release()
	if _, err := imaging.ReadHeader(ctx, data, limits); errors.Is(err, vision.ErrImage) {
		return nil, InvalidField("chunk", "%v", err)
	} else if err != nil {
		return nil, err
	}
	found := imaging.MediaType(data)
	if !imaging.IsMediaType(u.header.Type, found) {
		return nil, InvalidField("header.media_type", "%d bytes; want %s, which the file is, or none", len(u.header.Type), found)
	}
	info, err := u.writer.Keep()
	if err != nil {
		return nil, mediaError("chunk", err)
	}
	return &Media{Digest: info.Digest.String(), Bytes: info.Size, Type: found, Expires: info.Expires}, nil
}

// Abort lets go of what came. After Finish it does nothing.
func (u *Upload) Abort() {
	if u.writer != nil {
		u.writer.Abort()
	}
}

// event is what the audit log says of an upload.
func (u *Upload) event(ctx context.Context) audit.Event {
	e := u.service.auditEvent(ctx, operationUpload, u.header.Tenant)
	e.ID = u.header.ID
	if u.writer != nil && u.writer.Size() > 0 {
		e.Details = map[string]int64{"bytes": u.writer.Size()}
	}
	return e
}

// log writes the one line of an upload, and gives its error as the caller sees it.
func (u *Upload) log(ctx context.Context, err error) error {
	told := u.service.auditCall(u.event(ctx), shown(err, u.header.ID))
	kind := KindOf(told)
	attrs := []slog.Attr{slog.String("id", u.header.ID), slog.String("code", kind.String())}
	level := slog.LevelInfo
	if kind == Internal {
		level = slog.LevelError
		attrs = append(attrs, slog.Any("error", err))
	}
	if u.header.Tenant != "" {
		attrs = append(attrs, slog.String("tenant", u.header.Tenant))
	}
	if u.writer != nil {
		attrs = append(attrs, slog.Int64("bytes", u.writer.Size()))
	}
	took := slog.Float64("total_ms", float64(time.Since(u.began).Microseconds())/1000)
	u.service.options.Logger.LogAttrs(context.WithoutCancel(ctx), level, "upload", append(attrs, took)...)
	return told
}

// largestMedia is the most bytes of one file.
func (s *Service) largestMedia() int64 {
	return min(s.options.Media.Largest(), imaging.DefaultLimits().MaxBytes)
}

// imageLimits are those of the default model.
func (s *Service) imageLimits() (vision.Limits, func()) {
	d, _, release := s.models.Take("")
	if d == nil || d.Model.Prompter == nil {
		return vision.DefaultLimits(), release
	}
	return d.Model.Prompter.Limits, release
}

// HasMedia tells which of a tenant's files are kept, in the order asked; nil stands for one that is not. It counts as
// no use of them. An error is an *Error, which names the field digests.
func (s *Service) HasMedia(ctx context.Context, tenant string, digests []string) ([]*Media, error) {
	if s.options.Media == nil {
		return nil, mediaOff()
	}
	var v Violations
	if tenant = TenantOf(ctx, tenant, "tenant", &v); !validID(tenant) {
		v.Add("tenant", idText, len(tenant), MaxIDBytes)
	}
	list := make([]*Media, len(digests))
	for i, text := range digests {
		d, err := media.ParseDigest(text)
		if err != nil {
			v.Add(fmt.Sprintf("digests[%d]", i), "%v", err)
			continue
		}
		if info, ok := s.options.Media.Has(tenant, d); ok {
			list[i] = &Media{Digest: info.Digest.String(), Bytes: info.Size, Expires: info.Expires}
		}
	}
	return list, v.Err()
}

func mediaOff() error {
	return failed(FailedPrecondition, "this server keeps no uploaded media: it was started with --media-bytes 0; send images as data")
}

func urlsOff() error {
	return failed(FailedPrecondition, "this server fetches no images: it was started without --media-allow-urls, "+
		"which lists the hosts that it may fetch from; send images as data")
}

// mediaError is what a store's refusal is to a caller.
func mediaError(field string, err error) error {
	switch {
	case errors.Is(err, media.ErrFull):
		return Overloaded("the media in use and on their way take all the memory there is for them: try again later")
	case errors.Is(err, media.ErrTooLarge):
		return InvalidField(field, "%v", err)
	}
	return err
}

// files gives the images that came as digests or URLs their bytes, which stay until release is called.
func (l *life) files(ctx context.Context, req *checked) (release func(), err error) {
	closeUploads, err := l.open(req)
	if err != nil {
		return nil, err
	}
	closeFetched, err := l.fetch(ctx, req)
	if err != nil {
		closeUploads()
		return nil, err
	}
	return func() {
		closeUploads()
		closeFetched()
	}, nil
}

// open gives images that came as digests their bytes, which stay until release is called. It costs nothing, and so
// comes before a slot is taken. What another tenant uploaded is as if it had never come.
func (l *life) open(req *checked) (release func(), err error) {
	var files []*media.File
	release = func() {
		for _, f := range files {
			f.Close()
		}
	}
	var v Violations
	for i := range req.images {
		p := &req.images[i]
		if p.digest == nil {
			continue
		}
		f, ok := l.options.Media.Open(req.tenant, *p.digest)
		if !ok {
			v.Add(p.field, "no file of this digest is kept for the caller, or no longer; upload it (again)")
			continue
		}
		files = append(files, f)
		p.data = f.Data()
	}
	if len(v) > 0 {
		release()
		err := v.Err().(*Error)
		err.Kind = NotFound
		return func() {}, err
	}
	return release, nil
}
