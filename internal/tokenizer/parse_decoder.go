package tokenizer

import (
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

func readDecoder(raw json.RawMessage) ([]decoder, error) {
	elements, err := sequence(raw, "decoders")
	if err != nil {
		return nil, fmt.Errorf("decoder: %w", err)
	}
	var steps []decoder
	times := 1
	for _, e := range elements {
		var f struct {
			Type        string
			Pattern     patternFile
			Content     string
			Start, Stop int
			Prefix      *string
			Cleanup     *bool
			Suffix      *string
		}
		if err := json.Unmarshal(e, &f); err != nil {
			return nil, fmt.Errorf("decoder: %w", err)
		}
		var step decoder
		switch f.Type {
		case "ByteLevel":
			step = byteLevelDecoder{}
		case "ByteFallback":
			step = byteFallbackDecoder{}
		case "Fuse":
			step = fuseDecoder{}
		case "Strip":
			if utf8.RuneCountInString(f.Content) != 1 {
				return nil, fmt.Errorf("decoder Strip: content %q is not one character", f.Content)
			}
			step = stripDecoder{f.Content, f.Start, f.Stop}
		case "Replace":
			find, err := readReplace(f.Pattern, f.Content)
			if err != nil {
				return nil, fmt.Errorf("decoder Replace: %w", err)
			}
			if times *= lengthens(find, f.Content); times > maxDecoded {
				return nil, fmt.Errorf("decoder Replace: the steps up to it can make a token %d times as long, at most %d are supported", times, maxDecoded)
			}
			step = replaceDecoder{find, f.Content}
		case "Metaspace":
			m, err := readMetaspace(e)
			if err != nil {
				return nil, fmt.Errorf("decoder Metaspace: %w", err)
			}
			step = metaspaceDecoder{m.Replacement, m.PrependScheme != "never"}
		case "WordPiece":
			w := wordPieceDecoder{prefix: "##", cleanUp: true}
			if f.Prefix != nil {
				w.prefix = *f.Prefix
			}
			if f.Cleanup != nil {
				w.cleanUp = *f.Cleanup
			}
			step = w
		case "BPEDecoder":
			b := wordEndDecoder("</w>")
			if f.Suffix != nil {
				b = wordEndDecoder(*f.Suffix)
			}
			step = b
		default:
			return nil, fmt.Errorf("decoder.type %q is not supported", f.Type)
		}
		steps = append(steps, step)
	}
	return steps, nil
}
