package lineedit

import (
	"bytes"
	"strings"

	"github.com/mmserve/mmserve/cmd/mmserve/internal/markdown"
)

// The keys that do not go to the line editor as they are.
const (
	keyInterrupt = 0x03 // Ctrl-C
	keyEditor    = 0x07 // Ctrl-G
	keySuspend   = 0x1A // Ctrl-Z
	escape       = 0x1B
)

// Marks around a paste, which terminals send where they were asked to (bracketed paste).
var (
	pasteBegin = []byte("\x1b[200~")
	pasteEnd   = []byte("\x1b[201~")
)

// maxPaste bounds a paste, in bytes. What goes beyond it is left out.
const maxPaste = 8 << 20

// eventKind says what came from the keyboard.
type eventKind int

const (
	typed   eventKind = iota // bytes for the line editor
	pasted                   // a whole paste
	newline                  // a line end that does not send (Alt-Enter)
	interrupt
	editor
	suspend
)

type event struct {
	kind eventKind
	data []byte
}

// decoder finds in the bytes of a terminal what is not for the line editor. It keeps what is not complete.
type decoder struct {
	rest    []byte
	paste   []byte
	pasting bool
}

// feed takes what was read.
func (d *decoder) feed(data []byte) (list []event) {
	data = append(d.rest, data...)
	d.rest = nil
	for len(data) > 0 {
		if d.pasting {
			data = d.feedPaste(data, &list)
			continue
		}
		n := bytes.IndexFunc(data, special)
		if n < 0 {
			n = len(data)
		}
		if n > 0 {
			list = append(list, event{typed, data[:n:n]})
			data = data[n:]
			continue
		}
		switch data[0] {
		case keyInterrupt:
			list, data = append(list, event{kind: interrupt}), data[1:]
		case keyEditor:
			list, data = append(list, event{kind: editor}), data[1:]
		case keySuspend:
			list, data = append(list, event{kind: suspend}), data[1:]
		default:
			var waits bool
			if data, waits = d.feedEscape(data, &list); waits {
				return list
			}
		}
	}
	return list
}

func special(r rune) bool {
	return r == keyInterrupt || r == keyEditor || r == keySuspend || r == escape
}

// feedEscape takes a sequence that an escape begins; it waits for more if that may be the begin of a paste or of
// Alt-Enter.
func (d *decoder) feedEscape(data []byte, list *[]event) (rest []byte, waits bool) {
	switch {
	case bytes.HasPrefix(data, pasteBegin):
		d.pasting = true
		return data[len(pasteBegin):], false
	case bytes.HasPrefix(pasteBegin, data):
		d.rest = bytes.Clone(data)
		return nil, true
	case data[1] == '\r' || data[1] == '\n':
		*list = append(*list, event{kind: newline})
		return data[2:], false
	case special(rune(data[1])): // an escape by itself does nothing
		return data[1:], false
	}
	*list = append(*list, event{typed, data[:2:2]})
	return data[2:], false
}

func (d *decoder) feedPaste(data []byte, list *[]event) (rest []byte) {
	end := bytes.Index(data, pasteEnd)
	if end >= 0 {
		d.keep(data[:end])
		*list = append(*list, event{pasted, d.paste})
		d.pasting, d.paste = false, nil
		return data[end+len(pasteEnd):]
	}
	held := 0 // the begin of what may be its end
	for n := min(len(pasteEnd)-1, len(data)); n > 0; n-- {
		if bytes.HasPrefix(pasteEnd, data[len(data)-n:]) {
			held = n
			break
		}
	}
	d.keep(data[:len(data)-held])
	d.rest = bytes.Clone(data[len(data)-held:])
	return nil
}

func (d *decoder) keep(data []byte) {
	d.paste = append(d.paste, data[:min(len(data), maxPaste-len(d.paste))]...)
}

// plainText is a paste as a text: line ends are line feeds, and nothing in it commands a terminal.
func plainText(data []byte) string {
	text := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(string(data))
	return strings.ReplaceAll(markdown.Clean(text), string(returnMark), "\uFFFD")
}
