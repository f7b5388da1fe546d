package transcript

import (
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Files tell what is at a path.
type Files struct {
	Home   string                 // what ~ stands for
	Exists func(path string) bool // a regular file
	Sniff  func(path string) bool // a file whose first bytes are an image's
}

// mention is a file that a text names, and where.
type mention struct {
	start, end int
	path       string
}

// extensions are those of image files that a word of a message may be the name of.
var extensions = []string{
	".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".ppm", ".tga",
	".heic", ".heif", ".avif", ".jxl", ".svg", ".ico", ".jp2",
}

func imageName(path string) bool {
	return slices.Contains(extensions, strings.ToLower(filepath.Ext(path)))
}

// maxSpaces bounds the spaces of a file name that is neither quoted nor escaped.
const maxSpaces = 12

// Split takes the image files out of a message: as typed, or as terminals write a file that is dragged in, with
// escapes, in quotes, or as a file: URL. Where a name stands between words the text is parted there; else the images
// come first. missing are names of images that are no files.
func (f Files) Split(text string) (parts []Part, missing []string) {
	found, missing := f.find(text)
	if len(found) == 0 {
		return []Part{{Text: text}}, missing
	}
	var images, order []Part
	texts, at := 0, 0
	for _, m := range append(found, mention{start: len(text), end: len(text)}) {
		if between := text[at:m.start]; strings.TrimSpace(between) != "" {
			order = append(order, Part{Text: strings.Trim(between, " ")})
			texts++
		}
		at = m.end
		if m.path != "" {
			p := Part{Image: &Image{Name: m.path}}
			order, images = append(order, p), append(images, p)
		}
	}
	if texts > 1 {
		return order, missing
	}
	for _, p := range order {
		if p.Image == nil {
			images = append(images, p)
		}
	}
	return images, missing
}

// find looks at each beginning of a word.
func (f Files) find(text string) (found []mention, missing []string) {
	boundary := true
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		if boundary && !unicode.IsSpace(r) {
			m, gone := f.at(text, i)
			if m.path != "" {
				found = append(found, m)
				i = m.end
				continue
			}
			if gone != "" {
				missing = append(missing, gone)
			}
		}
		boundary = unicode.IsSpace(r) || r == '('
		i += size
	}
	return found, missing
}

// at gives the file whose name begins at a place, or the name of one that should be there.
func (f Files) at(text string, start int) (m mention, missing string) {
	rest := text[start:]
	if strings.HasPrefix(rest, "file:") {
		word := rest[:wordEnd(rest)]
		if u, err := url.Parse(strings.TrimSpace(word)); err == nil && u.Path != "" {
			return f.pick(start, map[int]string{start + len(word): u.Path}, true)
		}
	}
	if q := rest[0]; q == '"' || q == '\'' {
		inner, n, ok := quoted(rest)
		if !ok || !imageName(inner) && !pathLike(inner) {
			return m, ""
		}
		return f.pick(start, map[int]string{start + n: f.expand(inner)}, pathLike(inner))
	}
	end := wordEnd(rest)
	word := rest[:end]
	like := pathLike(word)
	ends := map[int]string{}
	for trim := word; trim != ""; {
		ends[start+len(trim)] = f.expand(unescape(trim))
		if strings.ContainsAny(trim, `\`) { // a file whose name has a backslash, or another system's path
			if raw := f.expand(trim); f.Exists(raw) {
				ends[start+len(trim)] = raw
			}
		}
		shorter := strings.TrimRight(trim, ".,;:!?)]}")
		if shorter == trim {
			break
		}
		trim = shorter
	}
	if m, missing = f.pick(start, ends, like); m.path != "" || !like {
		return m, missing
	}
	if spaced, _ := f.pick(start, f.spaced(text, start, end), true); spaced.path != "" {
		return spaced, ""
	}
	return m, missing
}

// spaced are the names that begin at a place and have spaces in them that nothing escapes.
func (f Files) spaced(text string, start, end int) map[int]string {
	ends := map[int]string{}
	line := text[start:]
	if i := strings.IndexByte(line, '\n'); i >= 0 {
		line = line[:i]
	}
	for n := 0; n < maxSpaces && end < len(line); n++ {
		next := end + 1 + wordEnd(line[end+1:])
		name := strings.TrimRight(line[:next], ".,;:!?)")
		if imageName(name) {
			ends[start+len(name)] = f.expand(unescape(name))
		}
		end = next
	}
	return ends
}

// pick takes the longest of some names that is a file.
func (f Files) pick(start int, ends map[int]string, like bool) (m mention, missing string) {
	for end, path := range ends {
		if end > m.end && (imageName(path) && f.Exists(path) || like && f.Sniff(path)) {
			m = mention{start: start, end: end, path: path}
		}
	}
	if m.path != "" || !like {
		return m, ""
	}
	for _, path := range ends {
		if imageName(path) {
			missing = path
		}
	}
	return m, missing
}

// pathLike tells a name that can only be meant as a path.
func pathLike(word string) bool {
	for _, prefix := range []string{"/", "./", "../", "~/"} {
		if strings.HasPrefix(word, prefix) {
			return true
		}
	}
	return len(word) > 2 && word[1] == ':' && (word[2] == '\\' || word[2] == '/')
}

// Expand has ~ stand for the home folder.
func (f Files) Expand(path string) string { return f.expand(path) }

func (f Files) expand(path string) string {
	if rest, ok := strings.CutPrefix(path, "~"); ok && f.Home != "" && (rest == "" || rest[0] == '/') {
		return f.Home + rest
	}
	return path
}

// wordEnd is where the first word ends: at white space that no backslash escapes.
func wordEnd(s string) int {
	escaped := false
	for i, r := range s {
		if unicode.IsSpace(r) && !escaped {
			return i
		}
		escaped = r == '\\' && !escaped
	}
	return len(s)
}

// Unquote gives what a shell makes of an argument that is a path: quotes and escapes removed.
func Unquote(arg string) string {
	if arg = strings.TrimSpace(arg); arg == "" {
		return ""
	}
	if inner, n, ok := quoted(arg); ok && n == len(arg) {
		return inner
	}
	if u, err := url.Parse(arg); err == nil && u.Scheme == "file" && u.Path != "" {
		return u.Path
	}
	return unescape(arg)
}

// quoted gives what stands in the quotes that s begins with, and where they end.
func quoted(s string) (inner string, end int, ok bool) {
	q := s[0]
	if q != '"' && q != '\'' {
		return "", 0, false
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == q:
			return b.String(), i + 1, true
		case c == '\\' && q == '"' && i+1 < len(s) && (s[i+1] == '"' || s[i+1] == '\\'):
			i++
			b.WriteByte(s[i])
		case c == '\n':
			return "", 0, false
		default:
			b.WriteByte(c)
		}
	}
	return "", 0, false
}

// unescape removes backslashes before other characters.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
