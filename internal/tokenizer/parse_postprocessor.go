package tokenizer

import (
	"encoding/json"
	"fmt"
	"slices"
)

// readPostProcessor returns the ids that are put before and after a text.
func readPostProcessor(raw json.RawMessage) (prefix, suffix []int32, err error) {
	elements, err := sequence(raw, "processors")
	if err != nil {
		return nil, nil, fmt.Errorf("post_processor: %w", err)
	}
	templates := 0
	for _, e := range elements {
		var f struct {
			Type          string
			Single        []templateItem
			SpecialTokens map[string]struct{ IDs []int32 } `json:"special_tokens"`
			Cls, Sep      namedID
		}
		if err := json.Unmarshal(e, &f); err != nil {
			return nil, nil, fmt.Errorf("post_processor: %w", err)
		}
		switch f.Type {
		case "ByteLevel": // concerns offsets only
			continue
		case "RobertaProcessing", "BertProcessing":
			prefix, suffix = []int32{f.Cls.id}, []int32{f.Sep.id}
		case "TemplateProcessing":
			texts := 0
			for _, item := range f.Single {
				switch {
				case item.Sequence != nil:
					texts++
				case item.SpecialToken == nil:
					return nil, nil, fmt.Errorf("post_processor.single: an item is neither Sequence nor SpecialToken")
				default:
					tok, ok := f.SpecialTokens[item.SpecialToken.ID]
					if !ok {
						return nil, nil, fmt.Errorf("post_processor.single: %q is not in special_tokens", item.SpecialToken.ID)
					}
					if texts == 0 {
						prefix = append(prefix, tok.IDs...)
					} else {
						suffix = append(suffix, tok.IDs...)
					}
					if n := len(prefix) + len(suffix); n > maxTemplate {
						return nil, nil, fmt.Errorf("post_processor.single adds %d ids or more, at most %d are supported", n, maxTemplate)
					}
				}
			}
			if texts != 1 {
				return nil, nil, fmt.Errorf("post_processor.single has %d texts, only one is supported", texts)
			}
		default:
			return nil, nil, fmt.Errorf("post_processor.type %q is not supported", f.Type)
		}
		if templates++; templates > 1 {
			return nil, nil, fmt.Errorf("post_processor has more than one step that adds tokens, which is not supported")
		}
	}
	return prefix, suffix, nil
}

type templateItem struct {
	Sequence     *struct{ ID string }
	SpecialToken *struct{ ID string }
}

// namedID is written ["</s>", 2].
type namedID struct{ id int32 }

func (n *namedID) UnmarshalJSON(raw []byte) error {
	var name string
	return json.Unmarshal(raw, &[]any{&name, &n.id})
}

// checkTemplate refuses a template with ids that are no tokens.
func (t *Tokenizer) checkTemplate() error {
	for _, id := range slices.Concat(t.prefix, t.suffix) {
		if _, _, ok := t.Token(id); !ok {
			return fmt.Errorf("post_processor adds id %d, which is no token", id)
		}
	}
	return nil
}
