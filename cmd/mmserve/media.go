package main

import (
	"fmt"
	"time"

	"github.com/mmserve/mmserve/internal/media"
)

// mediaFlags say what is kept of uploaded images.
type mediaFlags struct {
	MediaBytes byteSize      `default:"256MiB" env:"MMSERVE_MEDIA_BYTES" help:"Memory of uploaded image files, those on their way among them; 0 takes no uploads."`
	MediaShare float64       `name:"media-tenant-share" default:"0.25" env:"MMSERVE_MEDIA_TENANT_SHARE" help:"Part of that memory that one tenant's files may take, more than 0 and up to 1."`
	MediaTTL   time.Duration `name:"media-ttl" default:"1h" env:"MMSERVE_MEDIA_TTL" help:"How long an uploaded image file is kept after it was last uploaded or used."`
}

const minMediaBytes, maxMediaBytes = 1 << 20, 1 << 40

func (f mediaFlags) check() error {
	switch b := int64(f.MediaBytes); {
	case b != 0 && (b < minMediaBytes || b > maxMediaBytes):
		return fmt.Errorf("--media-bytes %d: want 0, or %d to %d", b, minMediaBytes, int64(maxMediaBytes))
	case !(f.MediaShare > 0 && f.MediaShare <= 1): // NaN fails it
		return fmt.Errorf("--media-tenant-share %v: want more than 0 and up to 1", f.MediaShare)
	case f.MediaTTL < time.Second || f.MediaTTL > maxDuration:
		return fmt.Errorf("--media-ttl %v: want %v to %v", f.MediaTTL, time.Second, maxDuration)
	}
	return nil
}

// store is nil where no uploads are taken.
func (f mediaFlags) store() *media.Store {
	if f.MediaBytes == 0 {
		return nil
	}
	return media.New(media.Options{
		Bytes: int64(f.MediaBytes), TenantBytes: int64(f.MediaShare * float64(f.MediaBytes)), TTL: f.MediaTTL,
	})
}
