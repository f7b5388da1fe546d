package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

const (
	// chunkBytes is a message of an upload; the contract allows 1 MiB.
	chunkBytes = 256 << 10
	// maxKnown is how many uploads a client remembers.
	maxKnown = 4096
	// expiryMargin is how long before its end an upload is not relied on any more.
	expiryMargin = 10 * time.Second
	// noStoreTime is for how long a server without a store is not asked to keep images again, and for how long one is
	// relied on that does not say when an upload ends.
	noStoreTime = time.Minute
)

// WithUploads has images of above so many bytes uploaded once and named by their digest in the requests of tenant
// that have them, so that a conversation does not carry its images again and again. Where the server keeps no media,
// or lost one, requests carry their images. Default: they always do.
func WithUploads(tenant string, above int) Option {
	return func(o *options) { o.tenant, o.uploadAbove = tenant, max(above, 1) }
}

// ImageDigest is an image that the same tenant uploaded: see Client.Upload.
func ImageDigest(digest string) *pb.Part {
	return &pb.Part{Content: &pb.Part_Image{Image: &pb.Image{Digest: digest}}}
}

// ImageURL is an image that the server is to fetch. Servers refuse it unless they are set to fetch from that host.
func ImageURL(url string) *pb.Part {
	return &pb.Part{Content: &pb.Part_Image{Image: &pb.Image{Url: url}}}
}

// ReadImage is ImageBytes of what r gives, up to most bytes: 64 MiB, say, which is a server's default limit of a
// message.
func ReadImage(r io.Reader, most int64) (*pb.Part, error) {
	data, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("mmserve: the image is larger than %d bytes", most)
	}
	if err != nil {
		return nil, err
	}
	return ImageBytes(data), nil
}

// Upload has the server keep an image file for tenant, and gives the digest by which ImageDigest names it. What r
// gives is not held in memory. A file that can be read twice (an io.Seeker) and is there already is not sent. Errors
// are r's or gRPC statuses: UNIMPLEMENTED where the server keeps no media, RESOURCE_EXHAUSTED where it has no room.
func (c *Client) Upload(ctx context.Context, tenant string, r io.Reader) (digest string, err error) {
	header := &pb.UploadMediaHeader{Tenant: tenant}
	if s, ok := r.(io.Seeker); ok {
		start, err := s.Seek(0, io.SeekCurrent)
		if err == nil {
			hash := sha256.New()
			n, err := io.Copy(hash, r)
			if err == nil {
				_, err = s.Seek(start, io.SeekStart)
			}
			if err != nil {
				return "", err
			}
			header.Size, header.Digest = proto.Uint64(uint64(n)), digestOf(hash.Sum(nil))
		}
	}
	out, err := c.upload(ctx, header, r)
	return out.GetDigest(), err
}

// DeleteMedia has the server let go of an image file of tenant's and of all that was computed from it. It tells whether
// the server had it as an upload, and whether requests that have it go on, with the last of which the rest goes. A
// balanced client asks one server: each has media of its own.
func (c *Client) DeleteMedia(ctx context.Context, tenant, digest string) (existed, inUse bool, err error) {
	if c.uploads != nil {
		c.uploads.forget([]string{digest})
	}
	out, err := c.media.DeleteMedia(ctx, &pb.DeleteMediaRequest{Tenant: tenant, Digest: digest})
	return out.GetExisted(), out.GetInUse(), err
}

func digestOf(sum []byte) string { return "sha256:" + hex.EncodeToString(sum) }

// upload sends header and the bytes of r, unless the server has them.
func (c *Client) upload(ctx context.Context, header *pb.UploadMediaHeader,
	r io.Reader) (*pb.UploadMediaResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.media.UploadMedia(ctx)
	if err != nil {
		return nil, err
	}
	err = stream.Send(&pb.UploadMediaRequest{Header: header})
	hash, whole := sha256.New(), false
	for err == nil {
		chunk := make([]byte, chunkBytes) // gRPC may hold on to it
		n, end := io.ReadFull(r, chunk)
		hash.Write(chunk[:n])
		if n > 0 {
			err = stream.Send(&pb.UploadMediaRequest{Chunk: chunk[:n]})
		}
		if errors.Is(end, io.EOF) || errors.Is(end, io.ErrUnexpectedEOF) {
			whole = err == nil
			break
		}
		if end != nil {
			return nil, end
		}
	}
	if err != nil && !errors.Is(err, io.EOF) { // EOF: the server has answered
		return nil, err
	}
	out, err := stream.CloseAndRecv()
	if err != nil {
		return nil, err
	}
	want := header.GetDigest()
	if want == "" {
		if want = digestOf(hash.Sum(nil)); !whole {
			return nil, status.Error(codes.DataLoss, "mmserve: the server did not take the whole image")
		}
	}
	if out.GetDigest() != want {
		return nil, status.Errorf(codes.DataLoss, "mmserve: the server has %.80q for an image of %s", out.GetDigest(), want)
	}
	return out, nil
}

// uploads are the images that a client has uploaded. A nil one uploads none.
type uploads struct {
	client *Client
	above  int
	tenant string

	mu      sync.Mutex
	known   map[string]*upload // by digest
	noStore time.Time          // until then the server is not asked
}

// upload is one image. Who holds busy may upload it, and read and change until.
type upload struct {
	busy  chan struct{}
	until time.Time // the server has it; zero: it does not
}

// A sending is a request on its way, with as many of its images replaced by digests as the server has.
type sending struct {
	uploads   *uploads
	in, now   *pb.GenerateRequest
	digests   []string // that now has
	recovered bool     // they were uploaded again
}

// replace gives the request to send in in's place, having uploaded what is new. in stays as it is.
func (u *uploads) replace(ctx context.Context, in *pb.GenerateRequest) *sending {
	s := &sending{uploads: u, in: in, now: in}
	if u == nil || in.GetTenant() != u.tenant {
		return s
	}
	s.now = replaceImages(in, func(img *pb.Image) string {
		if len(img.GetData()) < u.above {
			return ""
		}
		digest := u.keep(ctx, img.GetData())
		if digest != "" {
			s.digests = append(s.digests, digest)
		}
		return digest
	})
	return s
}

// lost says whether err is that the server has the digests no longer, and prepares the request anew: first with
// uploads made again, for they may have expired, then with its images, for the next server may be another.
func (s *sending) lost(ctx context.Context, err error) bool {
	if len(s.digests) == 0 || !mediaMissing(err) {
		return false
	}
	s.uploads.forget(s.digests)
	if s.recovered {
		s.now, s.digests = s.in, nil
		return true
	}
	again := s.uploads.replace(ctx, s.in)
	s.now, s.digests, s.recovered = again.now, again.digests, true
	return true
}

// mediaMissing says whether err names an image's digest as the reason.
func mediaMissing(err error) bool {
	st := status.Convert(err)
	if st.Code() != codes.NotFound && st.Code() != codes.InvalidArgument {
		return false
	}
	for _, d := range st.Details() {
		bad, _ := d.(*errdetails.BadRequest)
		for _, v := range bad.GetFieldViolations() {
			if strings.HasSuffix(v.GetField(), ".digest") {
				return true
			}
		}
	}
	return false
}

// keep gives the digest of an image that the server has, or "" if it does not keep it: the request then carries the
// image, and its own error tells what is wrong.
func (u *uploads) keep(ctx context.Context, data []byte) string {
	sum := sha256.Sum256(data)
	digest := digestOf(sum[:])
	e := u.entry(digest)
	if e == nil {
		return ""
	}
	select {
	case e.busy <- struct{}{}:
		defer func() { <-e.busy }()
	case <-ctx.Done():
		return ""
	}
	if time.Now().Before(e.until) {
		return digest
	}
	header := &pb.UploadMediaHeader{Tenant: u.tenant, Size: proto.Uint64(uint64(len(data))), Digest: digest}
	out, err := u.client.upload(ctx, header, bytes.NewReader(data))
	if status.Code(err) == codes.Unimplemented {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.noStore = time.Now().Add(noStoreTime)
		return ""
	}
	if err != nil {
		return ""
	}
	e.until = time.Now().Add(noStoreTime)
	if t := out.GetExpireTime(); t != nil {
		e.until = t.AsTime().Add(-expiryMargin)
	}
	return digest
}

// entry is what is known of a digest; nil while the server has no store.
func (u *uploads) entry(digest string) *upload {
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Now().Before(u.noStore) {
		return nil
	}
	e := u.known[digest]
	if e == nil {
		for old := range u.known { // any one: it is uploaded again, of which the server knows better
			if len(u.known) < maxKnown {
				break
			}
			delete(u.known, old)
		}
		e = &upload{busy: make(chan struct{}, 1)}
		u.known[digest] = e
	}
	return e
}

func (u *uploads) forget(digests []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, d := range digests {
		delete(u.known, d)
	}
}

// replaceImages copies in as far as images have a digest; the copy shares everything else.
func replaceImages(in *pb.GenerateRequest, digest func(*pb.Image) string) *pb.GenerateRequest {
	replaced := false
	parts := func(list []*pb.Part) []*pb.Part {
		out := make([]*pb.Part, len(list))
		for i, p := range list {
			out[i] = p
			if d := digest(p.GetImage()); d != "" {
				out[i] = &pb.Part{Content: &pb.Part_Image{Image: &pb.Image{Digest: d, Detail: p.GetImage().GetDetail()}}}
				replaced = true
			}
		}
		return out
	}
	var chat *pb.Chat
	var prompt *pb.Prompt
	if list := in.GetChat().GetMessages(); len(list) > 0 {
		chat = shallow(in.GetChat())
		chat.Messages = make([]*pb.Message, len(list))
		for i, m := range list {
			chat.Messages[i] = shallow(m)
			chat.Messages[i].Parts = parts(m.GetParts())
		}
	} else if list := in.GetPrompt().GetParts(); len(list) > 0 {
		prompt = shallow(in.GetPrompt())
		prompt.Parts = parts(list)
	}
	if !replaced {
		return in
	}
	out := shallow(in)
	if chat != nil {
		out.Input = &pb.GenerateRequest_Chat{Chat: chat}
	} else {
		out.Input = &pb.GenerateRequest_Prompt{Prompt: prompt}
	}
	return out
}

// shallow copies a message whose fields are shared.
func shallow[M proto.Message](m M) M {
	out := m.ProtoReflect().New()
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		out.Set(f, v)
		return true
	})
	out.SetUnknown(m.ProtoReflect().GetUnknown())
	return out.Interface().(M)
}
