package serving

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mmserve/mmserve/internal/imaging"
	"github.com/mmserve/mmserve/internal/media"
	"github.com/mmserve/mmserve/vision"
)

// Media is an image file that was uploaded.
type Media struct {
	// Digest is what requests name it by, "sha256:" and 64 hexadecimal digits.
	Digest string
	Bytes  int64
	// Format, Width and Height are those of its header, after orientation. They are not known from HasMedia.
	Format        string
	Width, Height int
	// Expires is when it will be let go of, unless it is uploaded again. Others may need the room earlier.
	Expires time.Time
}

// Upload is an image file on its way. One goroutine has it, and ends it with Finish or Abort.
type Upload struct {
	service *Service
	writer  *media.Writer
	tenant  string
	size    int64
	digest  *media.Digest // what the caller says that it is; nil if nothing
	known   bool          // its first bytes have been looked at
}

// UploadMedia begins a tenant's file of size bytes. digest is empty, or what the bytes will be checked against. An
// error is an *Error, which names the fields size and digest.
func (s *Service) UploadMedia(tenant string, size uint64, digest string) (*Upload, error) {
	if s.options.Media == nil {
		return nil, mediaOff()
	}
	u := &Upload{service: s, tenant: tenant, size: int64(min(size, 1<<62))}
	var v Violations
	if !validID(tenant) {
		v.Add("tenant", "%d bytes; want at most %d printable ASCII characters without spaces", len(tenant), MaxIDBytes)
	}
	if most := s.largestMedia(); u.size == 0 || u.size > most {
		v.Add("size", "%d; want 1 to %d: the bytes of the file", size, most)
	}
	if digest != "" {
		d, err := media.ParseDigest(digest)
		if err != nil {
			v.Add("digest", "%v", err)
		}
		u.digest = &d
	}
	if err := v.Err(); err != nil {
		return nil, err
	}
	w, err := s.options.Media.Create(tenant, u.size)
	if err != nil {
		return nil, mediaError("size", err)
	}
	u.writer = w
	return u, nil
}

// largestMedia is the most bytes of one file.
func (s *Service) largestMedia() int64 {
	return min(s.options.Media.Largest(), imaging.DefaultLimits().MaxBytes)
}

// firstLook is how many bytes tell a format that is not read, so that no more of it need be sent.
const firstLook = 64

// Write adds bytes of the file. An error is an *Error, which names the field chunk.
func (u *Upload) Write(chunk []byte) error {
	if have := u.writer.Size(); have+int64(len(chunk)) > u.size {
		return InvalidField("chunk", "%d bytes of a file of %d; want no more than its size", have+int64(len(chunk)), u.size)
	}
	if _, err := u.writer.Write(chunk); err != nil {
		return mediaError("chunk", err)
	}
	if !u.known && (u.writer.Size() >= firstLook || u.writer.Size() == u.size) {
		u.known = true
		if err := imaging.Refused(u.writer.Data()); err != nil {
			return InvalidField("chunk", "%v", err)
		}
	}
	return nil
}

// Finish keeps the file, once it is whole, is what its caller said, and has the header of an image that requests may
// show. An error is an *Error, which names the field size, digest or chunk.
func (u *Upload) Finish(ctx context.Context) (Media, error) {
	defer u.writer.Abort()
	got := u.writer.Digest()
	if n := u.writer.Size(); n != u.size {
		return Media{}, InvalidField("size", "%d; %d bytes came", u.size, n)
	}
	if u.digest != nil && *u.digest != got {
		return Media{}, InvalidField("digest", "the bytes that came have another SHA-256")
	}
	limits, release := u.service.imageLimits()
	defer release()
	h, err := imaging.ReadHeader(ctx, u.writer.Data(), limits)
	switch {
	case errors.Is(err, vision.ErrImage):
		return Media{}, InvalidField("chunk", "%v", err)
	case err != nil:
		return Media{}, shown(err, "")
	}
	info, err := u.writer.Keep()
	if err != nil {
		return Media{}, mediaError("size", err)
	}
	return Media{
		Digest: info.Digest.String(), Bytes: info.Size, Format: h.Format, Width: h.Width, Height: h.Height, Expires: info.Expires,
	}, nil
}

// Abort lets go of what came. After Finish it does nothing.
func (u *Upload) Abort() { u.writer.Abort() }

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
func (s *Service) HasMedia(tenant string, digests []string) ([]*Media, error) {
	if s.options.Media == nil {
		return nil, mediaOff()
	}
	var v Violations
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

// DeleteMedia lets go of a tenant's file, which requests that use it may finish with. It tells whether there was one.
func (s *Service) DeleteMedia(tenant, digest string) (bool, error) {
	if s.options.Media == nil {
		return false, mediaOff()
	}
	d, err := media.ParseDigest(digest)
	if err != nil {
		return false, InvalidField("digest", "%v", err)
	}
	return s.options.Media.Delete(tenant, d), nil
}

func mediaOff() error {
	return failed(FailedPrecondition, "this server keeps no uploaded media: it was started with --media-bytes 0; send images as data")
}

func urlsOff() error {
	return failed(FailedPrecondition, "this server fetches no images: it was started without --media-allow-urls, "+
		"which lists the hosts that it may fetch from; send images as data, or upload them")
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
