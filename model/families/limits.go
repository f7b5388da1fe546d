package families

import "fmt"

// Most that a config.json may say, a few times what any released model has. Every size that follows from it then fits
// into an int64.
const (
	maxLayers  = 1 << 10
	maxWidth   = 1 << 17
	maxMLP     = 1 << 20
	maxHeads   = 1 << 11
	maxHeadDim = 1 << 11
	maxVocab   = 1 << 20
	maxPixels  = 1 << 13 // of a tile's side
)

// MaxTiles is the most tiles of an image.
const MaxTiles = 1 << 10

// ropeBytes is the most memory of the tables of cosines and sines, which a context has for every position.
const ropeBytes = 64 << 20

// maxContext is the most positions of a sequence.
const maxContext = 1 << 18

// MaxImageTokens is the most patch embeddings of an image: no context holds more.
const MaxImageTokens = maxContext

type limited struct {
	field       string
	value, most int
}

func inRange(list ...limited) error {
	for _, l := range list {
		if l.value < 1 || l.value > l.most {
			return fmt.Errorf("%s is %d, want 1 to %d", l.field, l.value, l.most)
		}
	}
	return nil
}

// within refuses sizes that are out of range, naming the field of config.json. Families fill in what a file leaves out
// first.
func (s Spec) within() error {
	d, t := s.Decoder, s.Tower
	if err := inRange(
		limited{"text_config.num_hidden_layers", d.Layers, maxLayers}, limited{"text_config.hidden_size", d.Hidden, maxWidth},
		limited{"text_config.intermediate_size", d.Intermediate, maxMLP}, limited{"text_config.num_attention_heads", d.Heads, maxHeads},
		limited{"text_config.num_key_value_heads", d.KVHeads, maxHeads}, limited{"text_config.head_dim", d.HeadDim, maxHeadDim},
		limited{"text_config.vocab_size", d.Vocab, maxVocab},
	); err != nil {
		return err
	}
	if s.AnySize != nil {
		if err := s.AnySize.Validate(); err != nil {
			return err
		}
	} else if s.DaViT != nil {
		if err := s.DaViT.Validate(); err != nil {
			return err
		}
	} else if err := inRange(
		limited{"vision_config.num_hidden_layers", t.Layers, maxLayers}, limited{"vision_config.hidden_size", t.Hidden, maxWidth},
		limited{"vision_config.intermediate_size", t.Intermediate, maxMLP}, limited{"vision_config.num_attention_heads", t.Heads, maxHeads},
		limited{"vision_config.image_size", t.ImageSize, maxPixels}, limited{"vision_config.patch_size", t.PatchSize, maxPixels},
	); err != nil {
		return err
	}
	if err := s.towerEpsilon(); err != nil {
		return err
	}
	if id := int64(s.Layout.ImageTokenID); id < 0 || id > maxVocab {
		return fmt.Errorf("the image token's id is %d, want 0 to %d", id, maxVocab)
	}
	return nil
}

// towerEpsilon refuses what the tower's norms would divide by the root of, and get no number. Reading a decoder does so
// for its own.
func (s Spec) towerEpsilon() error {
	eps := s.Tower.Eps
	if s.AnySize != nil {
		eps = s.AnySize.Norm.Eps
	}
	if !(eps >= 0 && eps <= 1) {
		return fmt.Errorf("vision_config.layer_norm_eps (rms_norm_eps) is %g, want 0 to 1", eps)
	}
	return nil
}

// CutContext shortens a context to maxContext, and to what position tables of ropeBytes hold. It returns the length
// that the files give, 0 where nothing is cut.
func (s *Spec) CutContext() (from int) {
	d := &s.Decoder
	if d.EncoderStates > 0 || d.Bart != nil { // positions are rows of the checkpoint
		return 0
	}
	most := min(maxContext, ropeBytes/max(d.RopeBytes(), 1))
	if d.MaxLen <= most {
		return 0
	}
	from, d.MaxLen = d.MaxLen, most
	return from
}
