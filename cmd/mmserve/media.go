package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/mmserve/mmserve/internal/fetch"
	"github.com/mmserve/mmserve/internal/media"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

// mediaFlags say what images may cost, and what is kept of uploaded ones.
type mediaFlags struct {
	Oversized  string        `name:"oversized-images" enum:"reject,downscale" default:"reject" env:"MMSERVE_OVERSIZED_IMAGES" help:"What becomes of images beyond --max-pixels, --max-tiles or --max-image-tokens: reject, or downscale, which has the model see them smaller where that fits the memory of decoding."`
	MaxTiles   int           `default:"0" env:"MMSERVE_MAX_TILES" help:"Most inputs of the vision tower that the images of one request may be cut into; 0 sets no bound."`
	MaxTokens  int           `name:"max-image-tokens" default:"0" env:"MMSERVE_MAX_IMAGE_TOKENS" help:"Most tokens that the images of one request may cost; 0 sets no bound."`
	MediaBytes byteSize      `default:"256MiB" env:"MMSERVE_MEDIA_BYTES" help:"Memory of uploaded image files, those on their way among them; 0 takes no uploads."`
	MediaShare float64       `name:"media-tenant-share" default:"0.25" env:"MMSERVE_MEDIA_TENANT_SHARE" help:"Part of that memory that one tenant's files may take, more than 0 and up to 1."`
	MediaTTL   time.Duration `name:"media-ttl" default:"1h" env:"MMSERVE_MEDIA_TTL" help:"How long an uploaded image file is kept after it was last uploaded or used."`
	AllowURLs  []string      `name:"media-allow-urls" placeholder:"HOST,…" env:"MMSERVE_MEDIA_ALLOW_URLS" help:"Hosts that images may be fetched from when a request names their URL: example.com, *.example.com (the names below it), example.com:8443, http://example.com (without TLS). Addresses of private networks are refused whatever the host (default: no image is fetched)."`
	FetchTime  time.Duration `name:"media-fetch-timeout" default:"10s" env:"MMSERVE_MEDIA_FETCH_TIMEOUT" help:"How long an image may take to be fetched, from the name's resolution to the last byte."`
}

// downscaleFactor is how many times --max-pixels an image may have that is scaled down.
const downscaleFactor = 4

func (f mediaFlags) downscale() bool { return f.Oversized == "downscale" }

// limit lets larger files in where they are scaled down.
func (f mediaFlags) limit(l *vision.Limits) {
	if f.downscale() {
		l.MaxFilePixels = downscaleFactor * l.MaxPixels
	}
}

const minMediaBytes, maxMediaBytes = 1 << 20, 1 << 40

// minMediaShare is the least that one tenant's files may take: a small image.
const minMediaShare = 64 << 10

func (f mediaFlags) check() error {
	switch b := int64(f.MediaBytes); {
	case b != 0 && (b < minMediaBytes || b > maxMediaBytes):
		return fmt.Errorf("--media-bytes %d: want 0, or %d to %d", b, minMediaBytes, int64(maxMediaBytes))
	case f.MaxTiles < 0 || f.MaxTiles > maxRequestCount:
		return fmt.Errorf("--max-tiles %d: want 0 to %d", f.MaxTiles, maxRequestCount)
	case f.MaxTokens < 0 || f.MaxTokens > 1<<24:
		return fmt.Errorf("--max-image-tokens %d: want 0 to %d", f.MaxTokens, 1<<24)
	case !(f.MediaShare > 0 && f.MediaShare <= 1): // NaN fails it
		return fmt.Errorf("--media-tenant-share %v: want more than 0 and up to 1", f.MediaShare)
	case f.MediaBytes != 0 && f.tenantBytes() < minMediaShare:
		return fmt.Errorf("--media-tenant-share %v: %d bytes of --media-bytes %d; want at least %d",
			f.MediaShare, f.tenantBytes(), int64(f.MediaBytes), minMediaShare)
	case f.MediaTTL < time.Second || f.MediaTTL > maxDuration:
		return fmt.Errorf("--media-ttl %v: want %v to %v", f.MediaTTL, time.Second, maxDuration)
	case f.FetchTime < 100*time.Millisecond || f.FetchTime > 10*time.Minute:
		return fmt.Errorf("--media-fetch-timeout %v: want 100ms to 10m", f.FetchTime)
	case len(f.AllowURLs) > 0 && f.MediaBytes == 0:
		return errors.New("--media-allow-urls: images that are fetched are held in --media-bytes, which is 0")
	}
	_, err := f.fetcher()
	return err
}

// fetcher is nil where no images are fetched.
func (f mediaFlags) fetcher() (serving.Fetcher, error) {
	o := fetch.Options{Timeout: f.FetchTime}
	for _, text := range f.AllowURLs {
		h, err := fetch.ParseHost(text)
		if err != nil {
			return nil, fmt.Errorf("--media-allow-urls %w", err)
		}
		o.Hosts = append(o.Hosts, h)
	}
	if len(o.Hosts) == 0 {
		return nil, nil
	}
	return fetch.New(o), nil
}

// apply sets what the server does with media. The flags have been checked.
func (f mediaFlags) apply(o *server.Options) {
	o.ImageBudget = serving.ImageBudget{Tiles: f.MaxTiles, Tokens: f.MaxTokens, Downscale: f.downscale()}
	o.Media = f.store()
	o.Fetcher, _ = f.fetcher()
}

// tenantBytes is what the files of one tenant may take.
func (f mediaFlags) tenantBytes() int64 { return int64(f.MediaShare * float64(f.MediaBytes)) }

// store is nil where no uploads are taken.
func (f mediaFlags) store() *media.Store {
	if f.MediaBytes == 0 {
		return nil
	}
	return media.New(media.Options{
		Bytes: int64(f.MediaBytes), TenantBytes: f.tenantBytes(), TTL: f.MediaTTL,
	})
}
