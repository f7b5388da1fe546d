package serving

import (
	"crypto/sha256"
	"fmt"
	"runtime"

	"github.com/mmserve/mmserve/internal/kernels"
	"github.com/mmserve/mmserve/vision"
)

// openDisk opens the folder of patch embeddings that c names, nil if it names none.
func (c Config) openDisk() (*vision.DiskCache, error) {
	if c.EncoderCacheDir == "" {
		return nil, nil
	}
	disk, err := vision.OpenDiskCache(c.EncoderCacheDir, c.EncoderCacheDisk)
	if err != nil {
		return nil, fmt.Errorf("--encoder-cache-dir: %w", err)
	}
	s := disk.Stats()
	c.Logger.Info("patch embeddings on disk", "dir", c.EncoderCacheDir, "images", s.Entries, "bytes", s.Bytes)
	return disk, nil
}

// keepOnDisk has the encoder keep patch embeddings in the folder of the config.
func (d *Deployment) keepOnDisk() (err error) {
	disk := d.config.disk
	if disk == nil {
		if d.disk, err = d.config.openDisk(); err != nil {
			return err
		}
		disk = d.disk
	}
	if disk == nil {
		return nil
	}
	// Processors with other operators give other bits, and so may another version.
	d.encoder.KeepOn(disk, sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s %t %t\n", d.Model.Fingerprint, encoderVersion,
		runtime.GOARCH, kernels.Available(), kernels.HasSelfAttention8())))
	d.Model.DiskStats, d.Model.ForgetDisk = disk.Stats, disk.Forget
	return nil
}

// encoderVersion changes with whatever makes towers give other bits for the same image.
const encoderVersion = "1"
