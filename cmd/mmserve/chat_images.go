package main

import (
	"context"
	"errors"
	"fmt"
	"image"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/mmserve/mmserve/cmd/mmserve/internal/termimage"
	"github.com/mmserve/mmserve/cmd/mmserve/internal/transcript"
	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/imaging"
)

// The room of an image that is shown when it is added, in character cells.
const (
	shownColumns = 24
	shownRows    = 8
)

// userFiles are those that messages may name.
func userFiles() transcript.Files {
	home, _ := os.UserHomeDir() // without one, ~ is a file's name
	return transcript.Files{
		Home: home,
		Exists: func(path string) bool {
			st, err := os.Stat(path)
			return err == nil && st.Mode().IsRegular()
		},
		Sniff: func(path string) bool {
			f, err := folder.Open(path)
			if err != nil {
				return false
			}
			defer f.Close()
			head := make([]byte, 512)
			n, _ := io.ReadFull(f, head) // a shorter file is told by what it has
			_, ok := imaging.Sniff(head[:n])
			return ok
		},
	}
}

// readImage reads an image file and decodes it once, so that a bad one is found when it is named. The image that is
// decoded is the caller's to draw.
func readImage(ctx context.Context, path string) (*transcript.Image, *imaging.RGB, error) {
	data, err := folder.ReadFile(path, imaging.DefaultLimits().MaxBytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", printable(path), reason(err))
	}
	return decodeImage(ctx, path, data)
}

// reason is an error of a file without its name.
func reason(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}

func decodeImage(ctx context.Context, name string, data []byte) (*transcript.Image, *imaging.RGB, error) {
	rgb, err := imaging.Decode(ctx, data, imaging.DefaultLimits())
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", printable(name), err)
	}
	format, _ := imaging.Sniff(data)
	return &transcript.Image{Name: name, Data: data, Format: format, Width: rgb.W, Height: rgb.H}, rgb, nil
}

// load reads an image, says so, and shows it where the terminal can.
func (s *chatSession) load(ctx context.Context, path string) (*transcript.Image, error) {
	img, rgb, err := readImage(ctx, path)
	if err != nil {
		return nil, err
	}
	s.added(img, rgb)
	return img, nil
}

func (s *chatSession) added(img *transcript.Image, rgb *imaging.RGB) {
	defer imaging.Release(rgb)
	if s.view.quiet || !s.view.person {
		return
	}
	columns, rows := s.view.size()
	if s.view.images != termimage.None && columns > shownColumns {
		small := rgbImage(rgb)
		err := termimage.Draw(s.view.out, small, min(shownColumns, columns/2), max(1, min(shownRows, rows/3)), s.view.images)
		if err != nil {
			s.view.images = termimage.None
		}
	}
	s.note(fmt.Sprintf("added %s: %s, %d×%d pixels", printable(filepath.Base(img.Name)), img.Format, img.Width, img.Height))
}

// rgbImage is a decoded image as Go's packages have it.
func rgbImage(rgb *imaging.RGB) image.Image {
	img := image.NewNRGBA(image.Rect(0, 0, rgb.W, rgb.H))
	for i := range rgb.W * rgb.H {
		copy(img.Pix[4*i:], rgb.Pix[3*i:3*i+3])
		img.Pix[4*i+3] = 255
	}
	return img
}

// addImages adds the images of a command's argument: paths as in a message, or one with spaces.
func (s *chatSession) addImages(ctx context.Context, arg string) error {
	if arg == "" {
		return errors.New("/image: want the path of an image file, as /image photo.jpg")
	}
	paths := []string{s.files.Expand(transcript.Unquote(arg))}
	if !s.files.Exists(paths[0]) {
		parts, _ := s.files.Split(arg)
		var found []string
		for _, p := range parts {
			if p.Image == nil {
				found = nil
				break
			}
			found = append(found, p.Image.Name)
		}
		if len(found) > 0 {
			paths = found
		}
	}
	for _, path := range paths {
		img, err := s.load(ctx, path)
		if err != nil {
			return err
		}
		s.talk.Pending = append(s.talk.Pending, img)
	}
	return nil
}

// pasteTime bounds how long a clipboard's program may take.
const pasteTime = 5 * time.Second

// clipboards are programs that print the clipboard: an image, or a text.
var clipboards = []struct {
	name        string
	image, text []string
	when        func() bool
}{
	{
		"wl-paste", []string{"--no-newline", "--type", "image/png"}, []string{"--no-newline", "--type", "text"},
		func() bool { return os.Getenv("WAYLAND_DISPLAY") != "" },
	},
	{
		"xclip", []string{"-selection", "clipboard", "-target", "image/png", "-out"},
		[]string{"-selection", "clipboard", "-out"}, func() bool { return os.Getenv("DISPLAY") != "" },
	},
	{"pngpaste", []string{"-"}, nil, func() bool { return runtime.GOOS == "darwin" }},
	{"pbpaste", nil, nil, func() bool { return runtime.GOOS == "darwin" }},
}

// paste adds the image that the clipboard has, or begins the next message with its text.
func (s *chatSession) paste(ctx context.Context) error {
	tried := false
	for _, c := range clipboards {
		program, err := exec.LookPath(c.name)
		if err != nil || !c.when() {
			continue
		}
		tried = true
		if c.image != nil {
			data := clipboard(ctx, program, c.image)
			if _, ok := imaging.Sniff(data); ok {
				img, rgb, err := decodeImage(ctx, "clipboard.png", data)
				if err != nil {
					return err
				}
				s.added(img, rgb)
				s.talk.Pending = append(s.talk.Pending, img)
				return nil
			}
		}
		if text := clipboard(ctx, program, c.text); len(text) > 0 && (c.text != nil || c.image == nil) {
			s.next = strings.TrimSpace(string(text))
			return nil
		}
	}
	if tried {
		return errors.New("/paste: the clipboard has neither an image nor a text")
	}
	return errors.New("/paste: no clipboard is here: want wl-paste under Wayland, xclip under X11, or pngpaste on a Mac; /image PATH adds a file")
}

// clipboard is what a program prints, within bounds; nothing if it fails.
func clipboard(ctx context.Context, program string, args []string) []byte {
	ctx, cancel := context.WithTimeout(ctx, pasteTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err != nil || cmd.Start() != nil {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(out, imaging.DefaultLimits().MaxBytes))
	_ = out.Close()
	if cmd.Wait() != nil || err != nil {
		return nil
	}
	return data
}

// complete completes commands and paths: what could follow the end of a line, and how many characters of it the
// candidates share.
func (s *chatSession) complete(line string) (shared int, candidates []string) {
	if rest, ok := strings.CutPrefix(line, "/"); ok && !strings.ContainsAny(rest, " /") {
		for _, c := range transcript.Commands {
			if tail, ok := strings.CutPrefix(c.Name, rest); ok {
				candidates = append(candidates, tail+" ")
			}
		}
		if len(candidates) > 0 {
			return len(line), candidates
		}
	}
	if rest, ok := strings.CutPrefix(line, "/set "); ok && !strings.Contains(rest, " ") {
		for _, o := range chatSettings {
			if tail, ok := strings.CutPrefix(o.name, rest); ok {
				candidates = append(candidates, tail+" ")
			}
		}
		return len(rest), candidates
	}
	return s.completePath(line)
}

// mostCandidates bounds what a folder offers.
const mostCandidates = 200

// completePath completes the last word as a path, with what a shell would escape escaped.
func (s *chatSession) completePath(line string) (shared int, candidates []string) {
	at := len(line)
	for at > 0 && (line[at-1] != ' ' || at > 1 && line[at-2] == '\\') {
		at--
	}
	word := s.files.Expand(transcript.Unquote(line[at:]))
	dir, base := filepath.Split(word)
	if dir == "" && base == "" && !strings.HasPrefix(line, "/") {
		return 0, nil // no word: nothing to go by
	}
	f, err := os.Open(filepath.Clean("./" + dir))
	if filepath.IsAbs(dir) {
		f, err = os.Open(dir)
	}
	if err != nil {
		return 0, nil
	}
	defer f.Close()
	entries, _ := f.ReadDir(10_000)
	for _, e := range entries {
		tail, ok := strings.CutPrefix(e.Name(), base)
		if !ok || base == "" && strings.HasPrefix(e.Name(), ".") || len(candidates) == mostCandidates {
			continue
		}
		end := " "
		if e.IsDir() {
			end = "/"
		}
		if printable(tail) == tail {
			candidates = append(candidates, escapePath.Replace(tail)+end)
		}
	}
	return len([]rune(base)), candidates
}

// escapePath writes a path as a terminal does that is dragged in.
var escapePath = strings.NewReplacer(" ", `\ `, "'", `\'`, `"`, `\"`, "(", `\(`, ")", `\)`, `\`, `\\`, "&", `\&`)
