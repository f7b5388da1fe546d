package serving

import (
	"context"
	"sync"
	"time"

	"github.com/mmserve/mmserve/internal/media"
	"github.com/mmserve/mmserve/vision"
)

// Deleted is what became of a file that was to be deleted.
type Deleted struct {
	// Existed says that it was kept, InUse that requests go on which have it: they finish, and what they hold of it goes
	// with the last.
	Existed, InUse bool
}

// DeleteMedia lets go of a tenant's file, and of all that models keep of it: patch embeddings, and the keys and values
// of prefixes that have it, whether it was uploaded or came with requests. What nobody uses is overwritten when it
// returns. It counts against the tenant's rate of requests. An error is an *Error, which names fields as the contract
// does.
func (s *Service) DeleteMedia(ctx context.Context, tenant, digest string) (Deleted, error) {
	var v Violations
	if tenant = TenantOf(ctx, tenant, "tenant", &v); !validID(tenant) {
		v.Add("tenant", idText, len(tenant), MaxIDBytes)
		tenant = ""
	}
	event := s.auditEvent(ctx, operationDelete, tenant)
	d, err := media.ParseDigest(digest)
	if err != nil {
		v.Add("digest", "%v", err)
	} else {
		event.Object = d.String()
	}
	if err = v.Err(); err == nil {
		err = s.auditBegin(event)
	}
	var out Deleted
	if err == nil {
		out, err = s.deleteMedia(ctx, tenant, d)
	}
	return out, s.auditCall(event, err)
}

// deleteMedia is DeleteMedia of a file that is named well.
func (s *Service) deleteMedia(ctx context.Context, tenant string, d media.Digest) (Deleted, error) {
	use, err := s.options.Quotas.enter(tenant, CallerOf(ctx).Peer)
	if err != nil {
		s.options.Telemetry.countQuota(ctx, err)
		return Deleted{}, err
	}
	use.end(0, true) // it counts against the rate alone
	var out Deleted
	if s.options.Media != nil {
		out.Existed = s.options.Media.Delete(tenant, d)
	}
	gone := s.forget(s.imageOf(tenant, d))
	if gone == nil {
		out.InUse = true
		return out, nil
	}
	wait, cancel := context.WithTimeout(ctx, forgetTime)
	defer cancel()
	select {
	case <-gone:
	case <-wait.Done(): // a sequence was cancelled, and its last step goes on
		out.InUse = true
	}
	if ctx.Err() != nil {
		return out, Left(ctx)
	}
	return out, nil
}

// forgetTime is how long DeleteMedia waits for the engines' next step.
const forgetTime = 5 * time.Second

// imageFile is a file as the encoder's cache and the prefix cache know it.
type imageFile struct {
	tenant string
	file   [32]byte
}

// imageOf is a tenant's file; tenants that share prefixes share images.
func (s *Service) imageOf(tenant string, file [32]byte) imageFile {
	if s.options.SharePrefixes {
		tenant = ""
	}
	return imageFile{tenant, file}
}

// images are those that requests use now.
type images struct {
	mu       sync.Mutex
	used     map[imageFile]*imageUse
	dropping sync.WaitGroup // what is about to be overwritten
}

// imageUse is guarded by images.mu.
type imageUse struct {
	requests int
	deleted  bool
	patches  [][]float32 // taken out of the caches, and to be overwritten when nobody reads them
}

// use counts the request among those that have img, before it asks for the patch embeddings.
func (l *life) use(img *vision.Image) {
	key, s := imageFile{img.Tenant, img.File}, l.Service
	s.images.mu.Lock()
	defer s.images.mu.Unlock()
	u := s.images.used[key]
	if u == nil {
		u = &imageUse{}
		s.images.used[key] = u
	}
	u.requests++
	l.uses = append(l.uses, func() { s.unuse(key, u) })
}

// unuseAll ends what use began, when nothing but the engine reads the patch embeddings any more.
func (l *life) unuseAll() {
	for _, release := range l.uses {
		release()
	}
}

func (s *Service) unuse(key imageFile, u *imageUse) {
	s.images.mu.Lock()
	defer s.images.mu.Unlock()
	if u.requests--; u.requests > 0 {
		return
	}
	delete(s.images.used, key)
	if u.deleted {
		s.drop(key, append(u.patches, s.takePatches(key)...))
	}
}

// forget has all models let go of an image. The channel is closed when nothing of it is left; nil: requests that are
// open have it, and the last of them sees to the rest.
func (s *Service) forget(key imageFile) <-chan struct{} {
	s.images.mu.Lock() // no request may find the patches and not be counted
	defer s.images.mu.Unlock()
	patches := s.takePatches(key)
	u := s.images.used[key]
	if u == nil {
		return s.drop(key, patches)
	}
	u.deleted, u.patches = true, append(u.patches, patches...)
	s.drop(key, nil)
	return nil
}

// takePatches takes an image out of the encoders' caches. s.images.mu is held.
func (s *Service) takePatches(key imageFile) (patches [][]float32) {
	s.models.Each(func(d *Deployment) {
		if d.Model.Forget != nil {
			patches = append(patches, d.Model.Forget(key.tenant, key.file)...)
		}
	})
	return patches
}

// drop has the engines and the disk let go of an image, and overwrites patches once none has it any more.
func (s *Service) drop(key imageFile, patches [][]float32) <-chan struct{} {
	var engines []<-chan struct{}
	var disks []func(string, [32]byte)
	s.models.Each(func(d *Deployment) {
		engines = append(engines, d.Engine.Forget(key.tenant, key.file))
		if d.Model.ForgetDisk != nil {
			disks = append(disks, d.Model.ForgetDisk)
		}
	})
	done := make(chan struct{})
	s.images.dropping.Go(func() { // until the sequences that are open have ended
		defer close(done)
		for _, forget := range disks {
			forget(key.tenant, key.file)
		}
		for _, gone := range engines {
			<-gone
		}
		for _, p := range patches {
			clear(p)
		}
	})
	return done
}
