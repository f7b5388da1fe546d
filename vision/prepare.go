package vision

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/mmserve/mmserve/internal/imaging"
)

// Limits bound what one encoded image may cost, and name the budget that all images share.
type Limits = imaging.Limits

// Budget is the memory and the cores that all decodes of a process share.
type Budget = imaging.Budget

// ErrImage marks an image the caller has to change: undecodable, truncated, too large, empty.
// The wrapped text is safe to show to that caller; it never holds pixel content.
var ErrImage = imaging.ErrImage

// DefaultLimits gives what zero Limits stand for.
func DefaultLimits() Limits { return imaging.DefaultLimits() }

// NewBudget gives a budget of bytes.
func NewBudget(bytes int64) *Budget { return imaging.NewBudget(bytes) }

// WithPriority says how soon the work on images that is done for ctx is wanted, of Prepare and of Encoder.Encode: of
// those who wait, the higher goes first. Without it the priority is 0.
func WithPriority(ctx context.Context, priority int) context.Context {
	return imaging.WithPriority(ctx, priority)
}

// DefaultDecodeBytes is the budget that decodes share by default.
const DefaultDecodeBytes = imaging.DefaultDecodeBytes

// Plan is what an image will become, known from its header.
type Plan struct {
	// Format, Width and Height are the file's, after orientation.
	Format        string
	Width, Height int
	Measured
}

// Measured is what a preprocessor makes of an image, known from its size.
type Measured struct {
	Grid Grid
	// ScaledWidth and ScaledHeight are the size in pixels in which the tower sees the image: that of all its tiles
	// together, or of one tile where it is not cut.
	ScaledWidth, ScaledHeight int
	// Bytes is the most memory that preprocessing holds at once; of a Plan with what decoding holds, the file not among
	// it.
	Bytes int64
}

// Measure reads an image's header and tells what p makes of it. Errors wrap ErrImage, or are the context's cause.
func Measure(ctx context.Context, p Preprocessor, data []byte, l Limits, split bool) (Plan, error) {
	h, err := imaging.ReadHeader(ctx, data, l)
	if err != nil {
		return Plan{}, err
	}
	return measure(p, h, split)
}

func measure(p Preprocessor, h *imaging.Header, split bool) (Plan, error) {
	plan := Plan{Format: h.Format, Width: h.Width, Height: h.Height}
	var err error
	plan.Measured, err = p.Measure(h.Width, h.Height, split)
	plan.Bytes = imaging.Sum(h.ScaleBytes, plan.Bytes)
	return plan, err
}

// recipe tells what a processor makes of an image: the sizes that it is scaled to, and how these become the pixels of a
// prepared image. cut takes the scaled images over, one for each scaling.
type recipe struct {
	scalings []imaging.Scaling
	cut      func(ctx context.Context, scaled []*imaging.RGB, img *Image) error
}

// prepare reads an image's header, judges what p makes of it, waits for the budget, decodes and follows the recipe for
// its width and height. Images that are prepared have the memory of their pixels beyond the budget's time.
func prepare(ctx context.Context, p Preprocessor, data []byte, l Limits, split bool,
	make func(w, h int) recipe) (*Image, error) {
	h, err := imaging.ReadHeader(ctx, data, l)
	if err != nil {
		return nil, err
	}
	plan, err := measure(p, h, split)
	if err != nil {
		return nil, err
	}
	release, err := l.Budget.Acquire(ctx, plan.Bytes)
	if err != nil {
		return nil, err
	}
	defer h.WhenOver(release)
	ctx, cancel := l.Within(ctx)
	defer cancel()
	img := &Image{Width: h.Width, Height: h.Height, Grid: plan.Grid, Started: time.Now()}
	r := make(h.Width, h.Height)
	scaled, err := h.Scale(ctx, r.scalings...)
	if err != nil {
		return nil, err
	}
	img.Decoded = time.Now()
	img.File = sha256.Sum256(data)
	img.Digest = digest(p, img.File)
	if err := r.cut(ctx, scaled, img); err != nil {
		return nil, err
	}
	return img, nil
}

// tileBytes is the memory of tiles of side s.
func tileBytes(tiles, s int) int64 { return imaging.Bytes(3, tiles, s, s) }

// floatBytes is the memory of the pixel values of an area, times as often as a processor repeats them.
func floatBytes(w, h, times int) int64 { return imaging.Bytes(4*3, w, h, times) }
